"""Lock files: how a process says that it is here, and how the others know that it still is.

A process holds an fcntl write lock on `msg.lock/<pid>` for as long as it lives; the kernel drops the lock with the
process, however it ends.  (Samba's messages_dgm.)  What the file says is lock_text.py's.
A process whose transport needs memory that others can look into has 64 words of it at offset 512 of the file: it
lives and dies with the entry, and whoever maps it knows whose it is.

Why clean-up never takes a living process's files.  Whoever removes the files of a pid first gets the write lock of
its lock file and checks that the file still has a name; a living process has that lock, so the cleaner fails.  A
process that is starting has opened its file but not locked it yet: if the cleaner is faster, it unlinks the file, the
process then gets the lock of a file without a name (st_nlink 0), sees it and starts over.  The socket is made after
the lock is held and removed by a cleaner only while the cleaner holds the lock, so it is never a starting process's.

fcntl locks belong to the process, and closing any descriptor of the file drops them: nothing here ever opens the
lock file of its own process a second time.

A lock file is one process's, never handed on: whoever gets the lock of a stale one unlinks it and makes another.  So
who has mapped the words of a process that is dead never sees those of its successor, and the lock of an opened file
tells of that very process.  What the stale file says is struck out before its lock is taken, or a process would pass
for its dead predecessor for a moment.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import time
from typing import NamedTuple

from msgd.errors import TransportError, UnsafeDirectory
from msgd.presence.lock_text import TEXT_MAX, Process, format_text, parse_text

_FLOCK = struct.Struct("hhqqi0q")
"""struct flock with 64-bit offsets: type, whence, start, length, pid."""
_ANY_LOCK = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)

_NO_LOCK_FILE = frozenset((errno.ENOENT, errno.ELOOP, errno.ENXIO))
"""Nothing there, a symbolic link, or a socket: in any case no process has its lock on it."""

_LOCK_PATIENCE = 2.0
"""Seconds.  A cleaner holds our lock file for microseconds of its own time; who holds it longer is no cleaner."""


class Entry(NamedTuple):
    """What a lock file tells of its pid, whether a process holds it or it is a dead one's."""

    pid: int
    is_alive: bool
    process: Process | None
    """What the text says; None if it says nothing that can be read."""
    uid: int
    modified: float
    """When the file was written last, in seconds since the epoch."""


def lock_holder(fd: int) -> int | None:
    """The pid that holds a write lock on the file, None if nobody does (or this process does)."""
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, _ANY_LOCK))
    return None if kind == fcntl.F_UNLCK else pid


def read_process(lock_dir_fd: int, pid: int) -> Process | None:
    """The entry of another process, if it lives: its lock file is locked by that very pid.

    Raises TransportError if that cannot be found out: no permission, no file descriptors left.
    """
    fd = open_lock_file(lock_dir_fd, pid)
    if fd is None:
        return None
    try:
        return parse_text(pid, os.pread(fd, TEXT_MAX, 0)) if lock_holder(fd) == pid else None
    finally:
        os.close(fd)


def read_lock_file(lock_dir_fd: int, pid: int) -> Entry | None:
    """What the lock file of another process, or of a dead one, tells; None if there is none.

    Raises TransportError as read_process() does.
    """
    fd = open_lock_file(lock_dir_fd, pid)
    if fd is None:
        return None
    try:
        status, process = os.fstat(fd), parse_text(pid, os.pread(fd, TEXT_MAX, 0))
        return Entry(pid, lock_holder(fd) == pid, process, status.st_uid, status.st_mtime)
    finally:
        os.close(fd)


def pids_in(directory_fd: int) -> set[int]:
    """The pids that files in the directory have as their names."""
    return {int(name) for name in os.listdir(directory_fd) if name.isascii() and name.isdigit() and len(name) < 11}


def open_lock_file(lock_dir_fd: int, pid: int) -> int | None:
    """The opened lock file of another pid, None if there is none."""
    try:
        fd = os.open(str(pid), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=lock_dir_fd)
    except OSError as error:
        if error.errno not in _NO_LOCK_FILE:
            raise TransportError(f"the lock file of pid {pid}: {error.strerror}") from error
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


class LockFile:
    """The lock file of this process, held from acquire() to release()."""

    def __init__(self, lock_dir_fd: int, directory: str, pid: int) -> None:
        self._lock_dir_fd = lock_dir_fd
        self._path = os.path.join(directory, str(pid))
        self._name = str(pid)
        self._fd = -1
        self._memory: mmap.mmap | None = None

    def acquire(self) -> None:
        """Make and lock the file, empty: nobody takes an empty one for a process yet.

        Raises UnsafeDirectory, TransportError.
        """
        try:
            self._fd = self._open_locked()
        except OSError as error:
            self.release()
            raise TransportError(f"{self._path}: {error.strerror}") from error

    def write(self, unique_id: int, lines: tuple[str, ...] = ()) -> None:
        """Put down the unique id and the lines behind it; the first line never changes under a reader.

        Raises TransportError.
        """
        text = format_text(unique_id, lines)
        try:
            if self._memory is None:
                os.pwrite(self._fd, text, 0)
                os.ftruncate(self._fd, len(text))
            else:
                os.pwrite(self._fd, text.ljust(TEXT_MAX, b"\n"), 0)
        except OSError as error:
            raise TransportError(f"{self._path}: {error.strerror}") from error

    def extend(self, data: bytes) -> mmap.mmap:
        """Put `data` behind the text, which takes up TEXT_MAX bytes from now on; the whole file, mapped."""
        os.pwrite(self._fd, b"\n" * TEXT_MAX + data, 0)
        self._memory = mmap.mmap(self._fd, TEXT_MAX + len(data))
        return self._memory

    def release(self) -> None:
        """Remove the file, then drop the lock: nobody sees it unlocked under its name."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self._lock_dir_fd)
            self.abandon()

    def abandon(self) -> None:
        """Close the descriptor and leave the file: in a forked child it is the parent's."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open_locked(self) -> int:
        deadline = time.monotonic() + _LOCK_PATIENCE
        while True:
            fd = os.open(
                self._name,
                os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                0o644,
                dir_fd=self._lock_dir_fd,
            )
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                os.close(fd)
                raise UnsafeDirectory(f"{self._path} is not a regular file; remove it")
            try:
                if status.st_size and lock_holder(fd) is None:
                    os.pwrite(fd, b"\n" * min(status.st_size, TEXT_MAX), 0)
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                holder = lock_holder(fd)
                os.close(fd)
                if time.monotonic() > deadline:
                    break
                time.sleep(0.0002)
                continue
            if os.fstat(fd).st_nlink:
                if not status.st_size:
                    os.fchmod(fd, 0o644)
                    return fd
                os.unlink(self._name, dir_fd=self._lock_dir_fd)
            os.close(fd)
        raise TransportError(
            f"{self._path} is locked by pid {holder}, which is not this process:"
            " is the directory shared with another pid namespace?"
        )
