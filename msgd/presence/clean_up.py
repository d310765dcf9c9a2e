# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Removing the files of dead processes, while other processes start, live and clean up at the same time.

Why clean-up never takes a living process's files.  The processes of msgd keep these rules; Samba's messages_dgm keeps
them with a write lock in place of the locks of Rule 2:

Rule 1. A process holds the write lock on its lock file for as long as it lives.
Rule 2. Whoever unlinks a lock file that is not its own, or removes a socket of that pid, holds the private lock of the
    pid and a read lock on the file.  So does a process that replaces the file of a dead predecessor.
Rule 3. Whoever has got a lock on the file checks that it still has a name (st_nlink).  If it has none, the lock is
    worthless: a cleaner gives up, and a starting process begins again.
Rule 4. A process creates its socket only after it holds its lock.
Rule 5. A cleaner skips its own pid.  It holds that lock, so the kernel would let it lock the file again.

Proof.  A cleaner wants to remove the files of pid P, and a process P is alive or starting.
- P holds its write lock.  The cleaner cannot get a read lock (Rule 1), so it removes nothing (Rule 2).
- P is one of msgd's and is starting.  It holds the private lock of its pid until it has its write lock, so the cleaner
  comes before that or after it.  Before: the cleaner removes the socket of a dead predecessor, because P has none yet
  (Rule 4), and the file.  After: the case above.
- P is one of Samba's, has opened its lock file and not locked it yet.  While the cleaner has its read lock, P cannot
  get its write lock; when the cleaner has finished, P locks a file without a name, as with a cleaner of Samba's.
The cleaner unlinks by name, and the name is still that of the file it has locked: a process of msgd's that would unlink
it needs the private lock, and one of Samba's a write lock (Rule 2), so nobody can have put another in its place.

Why a read lock.  Everybody can take a read lock on a lock file (0644), and a write lock would fail for as long as a
stranger holds one.  A read lock of ours succeeds beside it, and keeps the others from a write lock all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from msgd.errors import TransportError, UnsafeDirectory
from msgd.presence.lock_file import NOT_A_LOCK_FILE, kept_stale, lock_holder, open_lock_file, pids_in
from msgd.presence.private_lock import PrivateLock
from msgd.presence.socket_path import remove_socket


class Cleaner:
    """Removes what dead processes have left in one directory.  `own_pid` is this process's, which lives (Rule 5)."""

    def __init__(self, lock_dir_fd: int, socket_dir_fd: int, own_pid: int, private: PrivateLock) -> None:
        self._lock_dir_fd = lock_dir_fd
        self._socket_dir_fd = socket_dir_fd
        self._own_pid = own_pid
        self._private = private

    def remove_dead(self, found: Iterable[int], remove: Callable[[int], None]) -> list[int]:
        """Remove the sockets and lock files of dead processes, and with `remove` what else there is.

        The pids are those of the files in both directories and those in `found`.  Returns the pids of which there was
        something.  Raises TransportError.
        """
        found = set(found)
        try:
            pids = {*found, *pids_in(self._lock_dir_fd), *pids_in(self._socket_dir_fd)} - {self._own_pid}
            return [pid for pid in sorted(pids) if self.remove_if_dead(pid, remove, is_found=pid in found)]
        except OSError as error:
            raise TransportError(f"cleaning up after dead processes: {error.strerror}") from error

    def remove_if_dead(self, pid: int, remove: Callable[[int], None], *, is_found: bool = False) -> bool:
        """Remove socket and lock file of `pid`, and call remove(pid), if no process holds its lock.

        Returns whether there was something to remove.  A pid without a lock file gets one for the moment, since there
        must be something to lock.  Never call it for this process's own pid (Rule 5).  Raises OSError, TransportError.
        """
        had_lock_file, is_locked = self._look(pid)
        if is_locked:
            return False  # alive: that is all there is to do for most
        with self._private.held_if_free(pid) as is_free:
            if not is_free:
                return False  # it is starting, or another cleaner is at it
            name = str(pid)
            try:
                with kept_stale(name, self._lock_dir_fd, name, create=True) as is_stale:
                    if not is_stale:
                        return False
                    had_socket = remove_socket(self._socket_dir_fd, name)
                    remove(pid)
                    os.unlink(name, dir_fd=self._lock_dir_fd)
                    return had_lock_file or had_socket or is_found
            except UnsafeDirectory:  # a FIFO: no lock file, and not ours to remove
                return False
            except OSError as error:
                if error.errno in NOT_A_LOCK_FILE:  # a directory, a link, a socket
                    return False
                raise

    def _look(self, pid: int) -> tuple[bool, bool]:
        """Whether the pid has a lock file, and whether that has a write lock."""
        fd = open_lock_file(self._lock_dir_fd, pid)
        if fd is None:
            return False, False
        try:
            return True, lock_holder(fd) is not None
        finally:
            os.close(fd)
