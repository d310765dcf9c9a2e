"""Pid files, as Samba's daemons have them: `<pid directory>/<name>.pid` holds the decimal pid and a newline.

What counts is the fcntl write lock on the file and not its existence: the kernel drops the lock with the process, so
a file without a lock is a dead daemon's and whoever gets the lock takes it over.

Two starters.  Each opens the file and tries the lock; one gets it.  A starter may have opened a file that its holder,
ending, unlinks before the lock is free: the starter then gets the lock of a file without a name, sees it (the name
leads to another file or to none) and starts over.  So whoever holds the lock of the file that has the name is the
only one.

fcntl locks belong to the process: a forked child has none, so the file is to be taken after daemonizing; and closing
any descriptor of the file drops the lock, so its holder must not read_pid() its own file.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Collection
from types import TracebackType
from typing import Self

from msgd.errors import AlreadyRunning, TransportError, UnsafeDirectory
from msgd.presence.lock_file import lock_holder
from msgd.presence.open_directory import open_directory

_TEXT_MAX = 32
"""Bytes of a pid file that are read; a pid and its newline have at most 11."""

_LOCK_ATTEMPTS = 200
"""A lock whose holder is not the pid written in the file is held for microseconds: by a starter that has not written
its pid yet, or by a Samba tool that probes whether the file is stale."""


class PidFile:
    """The pid file of this process, held from acquire() to release(); a context manager, as DaemonContext wants one.

    Raises AlreadyRunning (with the other's pid), UnsafeDirectory, TransportError.
    """

    def __init__(self, pid_directory: str, name: str, trusted_uids: Collection[int]) -> None:
        self.path = pid_file_path(pid_directory, name)
        self._name = name
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
        """Make the directory and the file where they are missing, lock the file, and write this process's pid."""
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
        """Remove the file if it is still this process's, and drop the lock.  A second call does nothing.

        A forked child only closes its copies.
        """
        if self._fd >= 0:
            if self._owner == os.getpid() and self._has_name(self._fd):
                os.unlink(os.path.basename(self.path), dir_fd=self._directory_fd)
            os.close(self._fd)
            self._fd = -1
        if self._directory_fd >= 0:
            os.close(self._directory_fd)
            self._directory_fd = -1

    def _open_locked(self) -> int:
        holder = None
        for _ in range(_LOCK_ATTEMPTS):
            fd = os.open(
                os.path.basename(self.path),
                os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                0o644,
                dir_fd=self._directory_fd,
            )
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise UnsafeDirectory(f"{self.path} is not a regular file; remove it")
                if _try_lock(fd):
                    if self._has_name(fd):
                        locked, fd = fd, -1
                        return locked
                    continue
                holder = lock_holder(fd)
                if holder is not None and holder == _written_pid(fd):
                    break
            finally:
                if fd >= 0:
                    os.close(fd)
            os.sched_yield()
        raise AlreadyRunning(f"{self._name} is running already, pid {holder}: it holds {self.path}")

    def _has_name(self, fd: int) -> bool:
        """Whether the opened file is the one that the path leads to."""
        try:
            named = os.stat(os.path.basename(self.path), dir_fd=self._directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))


def pid_file_path(pid_directory: str, name: str) -> str:
    """Where the daemon `name` has its pid file."""
    return os.path.join(pid_directory, f"{name}.pid")


def read_pid(pid_directory: str, name: str) -> int | None:
    """The pid of the running daemon `name`, Samba's ones included; None if it is not running.

    The file must be locked by the very pid that is written in it.  Never to be called for a file that this process
    holds.  Raises TransportError if the file is there and may not be read.
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


def _try_lock(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _written_pid(fd: int) -> int | None:
    """The pid that the file says; None if it says none."""
    digits = os.pread(fd, _TEXT_MAX, 0).partition(b"\n")[0]
    return int(digits) if digits.isdigit() else None
