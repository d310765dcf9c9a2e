# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Removing the files of dead processes, while other processes start, live and clean up at the same time.

Why clean-up never takes a living process's files.  Both msgd and Samba's messages_dgm keep these rules:

Rule 1. A process holds the write lock on its lock file for as long as it lives.
Rule 2. Whoever unlinks a lock file, or removes a socket of the same pid that is not its own, holds that write lock.
Rule 3. Whoever has got the lock checks that the file still has a name (st_nlink).  If it has none, the lock is
    worthless: a cleaner gives up, and a starting process begins again.
Rule 4. A process creates its socket only after it holds its lock.
Rule 5. A cleaner skips its own pid.  It holds that lock, so the kernel would let it lock the file again.

Proof.  A cleaner wants to remove the files of pid P, and a process P is alive or starting.
- P holds its lock.  The cleaner cannot get it (Rule 1), so it removes nothing (Rule 2).
- P has opened its lock file and not yet locked it, and the cleaner gets the lock first.  The cleaner removes the socket
  of a dead predecessor, because P has none yet (Rule 4), and unlinks the file.  P then locks a file without a name,
  notices it (Rule 3), and begins again with a new file.
- P has not opened its lock file yet.  P then opens the old file, which is the case above, or creates a new one after
  the cleaner has unlinked the old one.
The cleaner unlinks by name, and the name is still that of the file it has locked: nobody else may unlink that file
(Rule 2), so nobody can have put another in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from msgd.errors import TransportError
from msgd.presence.lock_file import open_to_lock, pids_in, try_lock
from msgd.presence.socket_path import remove_socket


def remove_dead(
    lock_dir_fd: int, socket_dir_fd: int, own_pid: int, found: Iterable[int], remove: Callable[[int], None]
) -> list[int]:
    """Remove the sockets and lock files of dead processes, and with `remove` what else there is.  Returns their pids.

    The pids are those of the files in both directories and those in `found`.  Raises TransportError.
    """
    pids = {*found, *pids_in(lock_dir_fd), *pids_in(socket_dir_fd)} - {own_pid}
    try:
        return [pid for pid in sorted(pids) if remove_if_dead(lock_dir_fd, socket_dir_fd, pid, remove)]
    except OSError as error:
        raise TransportError(f"cleaning up after dead processes: {error.strerror}") from error


def remove_if_dead(lock_dir_fd: int, socket_dir_fd: int, pid: int, remove: Callable[[int], None]) -> bool:
    """Remove socket and lock file of `pid`, and call remove(pid), if no process holds its lock.

    Returns whether they were removed.  A pid without a lock file gets one for the moment, since there must be something
    to lock.  Never call it for this process's own pid (Rule 5).  Raises OSError.
    """
    name = str(pid)
    try:
        fd = open_to_lock(name, lock_dir_fd)
    except OSError:  # a directory, a link, a socket: no lock file, and not ours to remove
        return False
    try:
        if not try_lock(fd) or os.fstat(fd).st_nlink == 0:
            return False  # alive, or another cleaner was faster
        remove_socket(socket_dir_fd, name)
        remove(pid)
        os.unlink(name, dir_fd=lock_dir_fd)
        return True
    finally:
        os.close(fd)
