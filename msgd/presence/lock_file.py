# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Lock files: how a process shows that it is alive, and how others check it.

A process holds an fcntl write lock on `msg.lock/<pid>` for as long as it lives.  The kernel drops the lock when the
process ends, whatever the reason.  This is the format of Samba's messages_dgm; lock_text.py describes the text of the
file, shared_words.py the memory that may follow it, and clean_up.py how the files of the dead are removed.

Rule 1. A process is alive if its lock file has a write lock that is held by that very pid.  Nothing else counts: not
    that the file exists, not a lock held by another pid, and not a read lock, which everybody can take.
Rule 2. A process never opens its own lock file a second time.  fcntl locks belong to the process, and closing any
    descriptor of the file would drop the lock.
Rule 3. A lock counts only if the file still has a name.  Whoever has got one checks st_nlink and begins again if it is
    zero: a cleaner has been faster (see clean_up.py).
Rule 4. A lock file is never handed on.  A process that finds the file of a dead predecessor unlinks it and creates
    another.  Whoever has the dead process's file open, mapped or locked therefore never sees the successor through it,
    and the lock of an open file always tells about one and the same process.
Rule 5. A stale file is unlinked under a read lock of ours and the private lock of its pid (private_lock.py).  The read
    lock succeeds beside a stranger's, which a write lock would not, and it keeps all others from a write lock.  The
    private lock keeps two processes of msgd's from unlinking at once.
Rule 6. A new file has mode 0600 until its write lock is taken.  So nobody can lock it before its owner does.
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
from collections.abc import Iterator
from typing import NamedTuple

from msgd.errors import TransportError, UnsafeDirectory, system_error
from msgd.presence.lock_text import TEXT_MAX, Process, format_text, parse_text
from msgd.presence.private_lock import PrivateLock, refused

_FLOCK = struct.Struct("hhqqi0q")
"""struct flock with 64-bit offsets (fcntl(2)): type, whence, start, length, pid."""
_READ_ALL = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
"""A read lock on the whole file: only write locks are in its way, so F_GETLK names the holder of one."""

NOT_A_LOCK_FILE = frozenset((errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EISDIR))
"""Errors of open() for a missing file, a link, a socket, a directory.  No process holds its lock on any of these."""

_LOCK_TIMEOUT = 2.0
"""Seconds to wait for our own lock.  Samba's cleaners hold it for microseconds; longer, it is no cleaner."""

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
    elsewhere: int | None = None
    """The pid that holds the write lock if it is not this pid: the process lives in another pid namespace.

    That is the pid which it has in ours, or 0 if ours does not see it.
    """


# Any lock file


def pids_in(directory_fd: int) -> set[int]:
    """The pids that files in the directory are named after.  Raises TransportError."""
    try:
        names = os.listdir(directory_fd)
    except OSError as error:
        raise system_error("listing the directory", error) from error
    return {int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 11}


def lock_holder(fd: int) -> int | None:
    """The pid that holds a write lock on the file; None if no other process holds one.  Raises TransportError."""
    try:
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, _READ_ALL))
    except OSError as error:
        raise _refused(fd, error) from error
    return None if kind == fcntl.F_UNLCK else pid


def create_locked(name: str, directory_fd: int) -> int | None:
    """Create a file that nobody else can open, and take its write lock (Rule 6).  Under the private lock of the file.

    Returns None if there is such a file, or if another process has got it at once (Rule 3).  Raises OSError,
    TransportError.
    """
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    except FileExistsError:
        return None
    try:
        if _try_lock(fd, fcntl.LOCK_EX) and os.fstat(fd).st_nlink:
            locked, fd = fd, -1
            return locked
        return None
    except BaseException:
        os.unlink(name, dir_fd=directory_fd)
        raise
    finally:
        if fd >= 0:
            os.close(fd)


@contextlib.contextmanager
def kept_stale(name: str, directory_fd: int, path: str, *, create: bool = False) -> Iterator[bool]:
    """Keep a file without a write lock as it is: inside, no process can lock it or unlink it (Rule 5).

    Under the private lock of the file.  Yields whether there is such a file: not if it is missing (`create` makes one),
    nor if another process holds its write lock.  Raises UnsafeDirectory if it is no regular file, OSError,
    TransportError.
    """
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags | (os.O_CREAT if create else 0), 0o600, dir_fd=directory_fd)
    except FileNotFoundError:
        yield False
        return
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UnsafeDirectory(f"{path} is not a regular file; remove it")
        yield _try_lock(fd, fcntl.LOCK_SH) and os.fstat(fd).st_nlink > 0
    finally:
        os.close(fd)


def _try_lock(fd: int, kind: int) -> bool:
    """Take a lock on the whole file (LOCK_EX: a write lock, LOCK_SH: a read lock).  Returns whether it was free."""
    try:
        fcntl.lockf(fd, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, see fcntl(2)
        return False
    except OSError as error:
        raise _refused(fd, error) from error
    return True


def _refused(fd: int, error: OSError) -> TransportError:
    return refused(os.readlink(f"/proc/self/fd/{fd}"), error)


# The lock files of others


def open_lock_file(lock_dir_fd: int, pid: int) -> int | None:
    """Open the lock file of another pid for reading.  Returns None if there is none.  Raises TransportError.

    One that this user may not open is none yet: its process has not got its lock (Rule 6).
    """
    try:
        fd = os.open(str(pid), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=lock_dir_fd)
    except OSError as error:
        if error.errno in NOT_A_LOCK_FILE or (error.errno == errno.EACCES and _is_there(lock_dir_fd, pid)):
            return None
        raise TransportError(f"the lock file of pid {pid}: {error.strerror}") from error
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _is_there(lock_dir_fd: int, pid: int) -> bool:
    try:
        os.stat(str(pid), dir_fd=lock_dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return True


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
        holder = lock_holder(fd)
        elsewhere = None if holder == pid else holder
        return Entry(pid, holder == pid, process, status.st_uid, status.st_mtime, elsewhere)
    finally:
        os.close(fd)


# Our own


class LockFile:
    """The lock file of this process, held from acquire() to release()."""

    def __init__(self, lock_dir_fd: int, directory: str, pid: int, private: PrivateLock) -> None:
        self._lock_dir_fd = lock_dir_fd
        self._pid = pid
        self._private = private
        self._path = os.path.join(directory, str(pid))
        self._name = str(pid)
        self._fd = -1
        self._memory: mmap.mmap | None = None

    def acquire(self) -> None:
        """Create the file and lock it.  It is still empty, and an empty file is not taken for a process yet.

        Waits up to two seconds for the lock, and five for the private one.  Raises UnsafeDirectory, TransportError.
        """
        try:
            with self._private.held(self._pid):
                self._fd = self._create()
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

    def _create(self) -> int:
        """Create and lock the file; an old one is unlinked first (Rules 4, 5)."""
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            with kept_stale(self._name, self._lock_dir_fd, self._path) as is_stale:
                if is_stale:
                    os.unlink(self._name, dir_fd=self._lock_dir_fd)
            fd = create_locked(self._name, self._lock_dir_fd)
            if fd is not None:
                os.fchmod(fd, 0o644)
                return fd
            if time.monotonic() > deadline:
                raise TransportError(
                    f"{self._path} is locked by pid {self._holder()}, which is not this process:"
                    " is the directory shared with another pid namespace?"
                )
            time.sleep(_LOCK_RETRY)

    def _holder(self) -> int | None:
        fd = open_lock_file(self._lock_dir_fd, self._pid)
        if fd is None:
            return None
        try:
            return lock_holder(fd)
        finally:
            os.close(fd)
