# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Pid files as Samba's daemons write them: `<pid directory>/<name>.pid` holds the decimal pid and a newline.

Rule 1. The daemon runs if the file has an fcntl write lock held by the pid that is written in it.  That the file
    exists proves nothing.  The kernel drops the lock with the process, so a file without a lock was left by a dead
    daemon, and whoever gets the lock takes the file over.
Rule 2. A lock counts only if the path still leads to the locked file.  Otherwise the starter begins again.
Rule 3. fcntl locks belong to the process.  A forked child has none, so a daemon acquires the file after it has
    detached.  Closing any descriptor of the file drops the lock, so its holder must not call read_pid() on it.

Why only one of two starters succeeds.  Both open the file and try the lock, and one gets it.  The other may have opened
a file that its holder, while ending, unlinks before it drops the lock.  That starter then gets the lock of a file to
which the path no longer leads, and begins again (Rule 2).  So the one that holds the lock of the file at the path is
the only one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from types import TracebackType
from typing import Self

from msgd.errors import AlreadyRunning, TransportError, UnsafeDirectory
from msgd.presence.lock_file import lock_holder, open_to_lock, try_lock
from msgd.presence.open_directory import open_directory

_TEXT_MAX = 32
"""Bytes of a pid file that are read; a pid and its newline have at most 11."""

_LOCK_ATTEMPTS = 200
"""How often to try a lock whose holder is not the pid in the file.  Such a lock is held for microseconds: by a starter
that has not written its pid yet, or by a Samba tool that checks whether the file is stale."""


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
            self._fd = self._open_locked()
            self._owner = os.getpid()
            text = f"{self._owner}\n".encode()
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))
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

    def _open_locked(self) -> int:
        for _ in range(_LOCK_ATTEMPTS):
            fd = open_to_lock(self._file_name, self._directory_fd)
            try:
                if self._try_lock(fd):
                    locked, fd = fd, -1
                    return locked
                holder = lock_holder(fd)
                if holder is not None and holder == _written_pid(fd):
                    break
            finally:
                if fd >= 0:
                    os.close(fd)
            os.sched_yield()
        raise AlreadyRunning(f"{self._name} is running already, pid {holder}: it holds {self.path}")

    def _try_lock(self, fd: int) -> bool:
        """Whether we now hold the lock of the file at the path (Rule 2)."""
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UnsafeDirectory(f"{self.path} is not a regular file; remove it")
        return try_lock(fd) and self._is_at_path(fd)

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
    path = pid_file_path(pid_directory, name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        holder = lock_holder(fd)
        return holder if holder is not None and holder == _written_pid(fd) else None
    finally:
        os.close(fd)


def _written_pid(fd: int) -> int | None:
    """The pid in the file; None if it does not begin with one."""
    digits = os.pread(fd, _TEXT_MAX, 0).partition(b"\n")[0]
    return int(digits) if digits.isdigit() else None
