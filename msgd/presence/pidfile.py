# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Pid files as Samba's daemons write them: `<pid directory>/<name>.pid` holds the decimal pid and a newline.

Rule 1. The daemon runs if the file has an fcntl write lock held by the pid that is written in it.  That the file
    exists proves nothing, and neither does a read lock, which everybody can take.  The kernel drops the lock with the
    process, so a file without a write lock was left by a dead daemon.
Rule 2. A starter never takes over such a file: it unlinks it and creates another, so nobody can have the new one open
    or locked before it (rules 5 and 6 of lock_file.py).
Rule 3. fcntl locks belong to the process.  A forked child has none, so a daemon acquires the file after it has
    detached.  Closing any descriptor of the file drops the lock, so its holder must not call read_pid() on it.

Why only one of two starters succeeds.  Each holds the private lock of pid files from its look at the old file until it
has locked its own.  So the second one finds the file of the first, locked, or not at all if the first has ended.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from types import TracebackType
from typing import Self

from msgd.errors import AlreadyRunning, TransportError
from msgd.presence.lock_file import create_locked, kept_stale, lock_holder
from msgd.presence.open_directory import open_directory
from msgd.presence.private_lock import PID_FILE, PrivateLock

_TEXT_MAX = 32
"""Bytes of a pid file that are read; a pid and its newline have at most 11."""


class PidFile:
    """The pid file of this process, held from acquire() to release(); a context manager, as DaemonContext expects.

    Raises AlreadyRunning (with the pid of the other process), UnsafeDirectory, TransportError.
    """

    def __init__(self, pid_directory: str, name: str, trusted_uids: Collection[int]) -> None:
        self.path = pid_file_path(pid_directory, name)
        self._name = name
        self._file_name = os.path.basename(self.path)
        self._trusted_uids = trusted_uids
        self._directory_fd = -1
        self._fd = -1
        self._owner = 0

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def acquire(self) -> None:
        """Create the directory and the file where they are missing, lock the file, and write this process's pid."""
        self._directory_fd = open_directory(os.path.dirname(self.path), 0o755, self._trusted_uids)
        try:
            with PrivateLock(self._directory_fd, os.path.dirname(self.path)).held(PID_FILE):
                self._fd = self._create()
                self._owner = os.getpid()
                os.pwrite(self._fd, f"{self._owner}\n".encode(), 0)
                os.fchmod(self._fd, 0o644)
        except BaseException as error:
            self.release()
            if isinstance(error, OSError):
                raise TransportError(f"{self.path}: {error.strerror}") from error
            raise

    def release(self) -> None:
        """Remove the file if the path still leads to it, and drop the lock.  A second call does nothing.

        In a forked child it only closes the child's descriptors.
        """
        if self._fd >= 0:
            if self._owner == os.getpid() and self._is_at_path(self._fd):
                os.unlink(self._file_name, dir_fd=self._directory_fd)
            os.close(self._fd)
            self._fd = -1
        if self._directory_fd >= 0:
            os.close(self._directory_fd)
            self._directory_fd = -1

    def _create(self) -> int:
        """Create and lock the file, in place of one that nobody holds (Rule 2)."""
        with kept_stale(self._file_name, self._directory_fd, self.path) as is_stale:
            if is_stale:
                os.unlink(self._file_name, dir_fd=self._directory_fd)
        fd = create_locked(self._file_name, self._directory_fd)
        if fd is None:
            holder = _holder(self.path)
            raise AlreadyRunning(f"{self._name} is running already, pid {holder}: it holds {self.path}")
        return fd

    def _is_at_path(self, fd: int) -> bool:
        """Whether the open file is the one that the path leads to."""
        try:
            named = os.stat(self._file_name, dir_fd=self._directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))


def pid_file_path(pid_directory: str, name: str) -> str:
    """The path of the pid file of the daemon `name`."""
    return os.path.join(pid_directory, f"{name}.pid")


def read_pid(pid_directory: str, name: str) -> int | None:
    """The pid of the running daemon `name`, which may be one of Samba's; None if it is not running (Rule 1).

    Never call it for a file that this process holds (Rule 3).  Raises TransportError if the file cannot be read.
    """
    fd = _open_to_read(pid_file_path(pid_directory, name))
    if fd is None:
        return None
    try:
        holder = lock_holder(fd)
        return holder if holder is not None and holder == _written_pid(fd) else None
    finally:
        os.close(fd)


def _holder(path: str) -> int | None:
    """The pid that holds the write lock of a pid file, whatever is written in it."""
    fd = _open_to_read(path)
    if fd is None:
        return None
    try:
        return lock_holder(fd)
    finally:
        os.close(fd)


def _open_to_read(path: str) -> int | None:
    """The file, opened; None if there is no regular file, or (mode 0600) if its daemon has not written its pid yet."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if isinstance(error, PermissionError) and os.path.lexists(path):
            return None
        raise TransportError(f"{path}: {error.strerror}") from error
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _written_pid(fd: int) -> int | None:
    """The pid in the file; None if it does not begin with one."""
    digits = os.pread(fd, _TEXT_MAX, 0).partition(b"\n")[0]
    return int(digits) if digits.isdigit() else None
