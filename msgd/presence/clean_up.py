# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Removing what dead processes left."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable

from msgd.errors import TransportError
from msgd.presence.lock_file import pids_in
from msgd.presence.socket_path import remove_socket


def clean_up(
    lock_dir_fd: int, socket_dir_fd: int, own_pid: int, found: Iterable[int], remove: Callable[[int], None]
) -> list[int]:
    """Remove sockets and lock files of dead processes; the pids of which there were any.  See Presence.clean_up."""
    pids = {*found, *pids_in(lock_dir_fd), *pids_in(socket_dir_fd)} - {own_pid}
    try:
        return [pid for pid in sorted(pids) if remove_if_dead(lock_dir_fd, socket_dir_fd, pid, remove)]
    except OSError as error:
        raise TransportError(f"cleaning up after dead processes: {error.strerror}") from error


def remove_if_dead(lock_dir_fd: int, socket_dir_fd: int, pid: int, remove: Callable[[int], None]) -> bool:
    """Remove socket and lock file of `pid` if no process holds its lock; whether it did.

    remove(pid), called while the lock is held here, removes what else there is of it.

    Never to be called for this process's own pid.
    """
    name = str(pid)
    try:
        fd = os.open(
            name,
            os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            0o644,
            dir_fd=lock_dir_fd,
        )
    except OSError:
        return False
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        if os.fstat(fd).st_nlink == 0:
            return False  # another cleaner was faster
        remove_socket(socket_dir_fd, name)
        remove(pid)
        os.unlink(name, dir_fd=lock_dir_fd)
        return True
    finally:
        os.close(fd)
