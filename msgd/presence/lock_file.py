# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Lock files: how a process shows that it is alive, and how others check it.

A process holds an fcntl write lock on `msg.lock/<pid>` for as long as it lives.  The kernel drops the lock when the
process ends, whatever the reason.  This is the format of Samba's messages_dgm; lock_text.py describes the text of the
file, shared_words.py the memory that may follow it, and clean_up.py how the files of the dead are removed.

Rule 1. A process is alive if its lock file is locked by that very pid.  Nothing else counts: not that the file exists,
    not a lock held by another pid.  A read lock of that pid counts as well (SECURITY.md, known limit 2).
Rule 2. A process never opens its own lock file a second time.  fcntl locks belong to the process, and closing any
    descriptor of the file would drop the lock.
Rule 3. A lock counts only if the file still has a name.  Whoever has got one checks st_nlink and begins again if it is
    zero: a cleaner has been faster (see clean_up.py).
Rule 4. A lock file is never handed on.  A process that finds the file of a dead predecessor locks it, unlinks it, and
    creates another.  Whoever has the dead process's file open or mapped therefore never sees the successor through it,
    and the lock of an open file always tells about one and the same process.
Rule 5. The text of a stale file is blanked before its lock is taken.  In the other order, a reader could find the old
    text under the lock of the new process, and take it for its dead predecessor.
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
"""struct flock with 64-bit offsets (fcntl(2)): type, whence, start, length, pid."""
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)

_NOT_A_LOCK_FILE = frozenset((errno.ENOENT, errno.ELOOP, errno.ENXIO))
"""Errors of open() for a missing file, a symbolic link and a socket.  No process holds its lock on any of these."""

_LOCK_TIMEOUT = 2.0
"""Seconds to wait for our own lock.  A cleaner holds it for microseconds; whoever holds it longer is not a cleaner."""

_LOCK_RETRY = 0.0002
"""Seconds between two attempts to get our own lock.  F_SETLKW would wait for the release, but it has no timeout."""


class Entry(NamedTuple):
    """The contents of a lock file, whether its process is alive or dead."""

    pid: int
    is_alive: bool
    process: Process | None
    """The text; None if it cannot be parsed."""
    uid: int
    modified: float
    """When the file was last written, in seconds since the epoch."""


# Any lock file


def pids_in(directory_fd: int) -> set[int]:
    """The pids that files in the directory are named after."""
    return {int(name) for name in os.listdir(directory_fd) if name.isascii() and name.isdigit() and len(name) < 11}


def open_to_lock(name: str, directory_fd: int) -> int:
    """Open a file for locking, creating it if it is missing.  Raises OSError, also for a link, directory or socket."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(name, flags, 0o644, dir_fd=directory_fd)


def try_lock(fd: int) -> bool:
    """Take the write lock on the whole file if no other process has a lock.  Returns whether it was taken."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, see fcntl(2)
        return False
    return True


def lock_holder(fd: int) -> int | None:
    """The pid that holds a lock on the file; None if no other process holds one.

    A read lock counts too: SECURITY.md, known limit 2.
    """
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, _WHOLE_FILE))
    return None if kind == fcntl.F_UNLCK else pid


# The lock files of others


def open_lock_file(lock_dir_fd: int, pid: int) -> int | None:
    """Open the lock file of another pid for reading.  Returns None if there is none.  Raises TransportError."""
    try:
        fd = os.open(str(pid), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=lock_dir_fd)
    except OSError as error:
        if error.errno not in _NOT_A_LOCK_FILE:
            raise TransportError(f"the lock file of pid {pid}: {error.strerror}") from error
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def read_process(lock_dir_fd: int, pid: int) -> Process | None:
    """The entry of another process; None if that is not alive (Rule 1) or has not announced itself yet.

    Raises TransportError if this cannot be determined: no permission, no descriptors left.
    """
    fd = open_lock_file(lock_dir_fd, pid)
    if fd is None:
        return None
    try:
        return parse_text(pid, os.pread(fd, TEXT_MAX, 0)) if lock_holder(fd) == pid else None
    finally:
        os.close(fd)


def read_lock_file(lock_dir_fd: int, pid: int) -> Entry | None:
    """The contents of the lock file of another pid, alive or dead; None if there is no such file.

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


# Our own


class LockFile:
    """The lock file of this process, held from acquire() to release()."""

    def __init__(self, lock_dir_fd: int, directory: str, pid: int) -> None:
        self._lock_dir_fd = lock_dir_fd
        self._path = os.path.join(directory, str(pid))
        self._name = str(pid)
        self._fd = -1
        self._memory: mmap.mmap | None = None

    def acquire(self) -> None:
        """Create the file and lock it.  It is still empty, and an empty file is not taken for a process yet.

        Waits up to two seconds for the lock.  Raises UnsafeDirectory, TransportError.
        """
        try:
            self._fd = self._open_locked()
        except OSError as error:
            raise TransportError(f"{self._path}: {error.strerror}") from error

    def write(self, unique_id: int, lines: tuple[str, ...] = ()) -> None:
        """Write the unique id and the lines that follow it; writing again may change the lines only.

        Raises TransportError, and ValueError if the text is too long.
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
        """Put `data` at offset TEXT_MAX of the file, which must not have text yet.  Returns the whole file, mapped.

        From now on the text is padded with newlines.  The mapping is closed with the file.  Raises OSError.
        """
        os.pwrite(self._fd, b"\n" * TEXT_MAX + data, 0)
        self._memory = mmap.mmap(self._fd, TEXT_MAX + len(data))
        return self._memory

    def release(self) -> None:
        """Remove the file, then drop the lock: an unlocked file never has a name.  A second call does nothing."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self._lock_dir_fd)
            self.abandon()

    def abandon(self) -> None:
        """Close the descriptor and leave the file: in a forked child it belongs to the parent."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open_locked(self) -> int:
        """Create and lock the file; an old one is locked and unlinked first (Rule 4)."""
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            fd = open_to_lock(self._name, self._lock_dir_fd)
            try:
                was_empty = self._blank(fd)
                if not try_lock(fd):
                    self._back_off(lock_holder(fd), deadline)
                elif os.fstat(fd).st_nlink:  # Rule 3
                    if was_empty:
                        os.fchmod(fd, 0o644)  # the umask has cleared bits of the mode given to open
                        locked, fd = fd, -1
                        return locked
                    os.unlink(self._name, dir_fd=self._lock_dir_fd)
            finally:
                if fd >= 0:
                    os.close(fd)

    def _blank(self, fd: int) -> bool:
        """Overwrite the text of a stale file (Rule 5).  Returns whether the file was empty, that is: new."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeDirectory(f"{self._path} is not a regular file; remove it")
        if status.st_size and lock_holder(fd) is None:
            os.pwrite(fd, b"\n" * min(status.st_size, TEXT_MAX), 0)
        return status.st_size == 0

    def _back_off(self, holder: int | None, deadline: float) -> None:
        """Give a cleaner the time to finish.

        Raises TransportError once it is clear that the holder is not a cleaner.
        """
        if time.monotonic() > deadline:
            raise TransportError(
                f"{self._path} is locked by pid {holder}, which is not this process:"
                " is the directory shared with another pid namespace?"
            )
        time.sleep(_LOCK_RETRY)
