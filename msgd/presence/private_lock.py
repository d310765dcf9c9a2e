# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Mutual exclusion between msgd's processes, by a file that only its owner can open.

Whoever can open a file for reading can lock it: flock() in either mode, a read lock by fcntl.  So the locks of files
that others can read must not decide who goes first.  `msgd.lock` in the same directory does.

Rule 1. The file has mode 0600 from its first moment, and it belongs to the owner of the directory.  One that others can
    open is refused, never repaired: they may have it open already.
Rule 2. Each byte of the file is a lock of its own: the byte at the offset `pid` is for the files of that pid, and those
    past the largest pid are for the files that are named below.
Rule 3. Nothing waits for a lock without a limit.  A lock is held for moments; after five seconds the wait ends with an
    error that names the holder.
Rule 4. The locks belong to the open file (F_OFD_SETLK).  A process's second opening, in another thread or in a signal's
    handler, therefore waits as another process does, and closing one does not drop the lock of the other.
Rule 5. A lock counts only if the file still has a name.  If somebody has removed the file, whoever gets the lock opens
    the next one.  msgd itself never removes it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator

from msgd.errors import TransportError, UnsafeDirectory
from msgd.linux import try_lock

PRIVATE_FILE = "msgd.lock"

NAMES_FILE = 1 << 40
"""The lock of `names`, in a build without tdb."""
MESSAGES_FILE = NAMES_FILE + 1
"""The lock of looking whether messages.tdb is damaged."""
PID_FILE = NAMES_FILE + 2
"""The lock of taking a pid file."""
PUBLISHERS_FILE = NAMES_FILE + 3
"""The lock of making the table of publishers (msgd/pubsub/table.py)."""

LOCK_TIMEOUT = 5.0
"""Seconds that a lock is waited for.  It is held for microseconds, so its holder has been stopped, or the disk has."""

_RETRY, _LONGEST_RETRY = 0.0002, 0.005
"""Seconds between two attempts: at first, and at most.  A wait in the kernel has no timeout."""


class PrivateLock:
    """The private locks of one directory.  It keeps nothing open."""

    def __init__(self, directory_fd: int, directory: str) -> None:
        self._directory_fd = directory_fd
        self._path = os.path.join(directory, PRIVATE_FILE)

    @contextlib.contextmanager
    def held(self, part: int) -> Iterator[None]:
        """Hold the lock of this part (Rule 2).  Waits five seconds at most.  Raises TransportError, UnsafeDirectory."""
        fd = self._locked(part, LOCK_TIMEOUT)
        if fd is None:
            raise TransportError(f"{self._path} has been locked for {LOCK_TIMEOUT:g} seconds by {self._holder(part)}")
        try:
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def held_if_free(self, part: int) -> Iterator[bool]:
        """Hold the lock of this part if nobody has it; tells whether.  Raises TransportError, UnsafeDirectory."""
        fd = self._locked(part, 0.0)
        try:
            yield fd is not None
        finally:
            if fd is not None:
                os.close(fd)

    def _locked(self, part: int, timeout: float) -> int | None:
        """The file, opened and locked; None if another has had the lock until the timeout."""
        deadline, pause = time.monotonic() + timeout, _RETRY
        while True:
            fd = self._open()
            try:
                while not self._try_lock(fd, part):
                    if time.monotonic() >= deadline:
                        return None
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_RETRY)
                if os.fstat(fd).st_nlink:  # Rule 5
                    locked, fd = fd, -1
                    return locked
            finally:
                if fd >= 0:
                    os.close(fd)

    def _try_lock(self, fd: int, part: int) -> bool:
        try:
            return try_lock(fd, part)
        except OSError as error:
            raise refused(self._path, error) from error

    def _open(self) -> int:
        """The file, made where it is missing."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(PRIVATE_FILE, flags, 0o600, dir_fd=self._directory_fd)
        except OSError as error:
            raise TransportError(f"{self._path}: {error.strerror}") from error
        try:
            self._check(fd)
        except OSError as error:
            os.close(fd)
            raise TransportError(f"{self._path}: {error.strerror}") from error
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check(self, fd: int) -> None:
        status, owner = os.fstat(fd), os.fstat(self._directory_fd).st_uid
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise UnsafeDirectory(
                f"{self._path} must be a regular file that only its owner can open; remove it when no msgd runs"
            )
        if status.st_uid != owner and os.geteuid() == 0:
            os.fchown(fd, owner, -1)  # root was the first, in the directory of another user

    def _holder(self, part: int) -> str:
        """Who holds the lock, for an error's text: the kernel tells it in /proc/<pid>/fdinfo alone."""
        wanted = f":{os.stat(PRIVATE_FILE, dir_fd=self._directory_fd).st_ino} {part} {part}\n"
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):  # it has ended, or belongs to another user
                for name in os.listdir(f"/proc/{pid}/fdinfo"):
                    with open(f"/proc/{pid}/fdinfo/{name}", encoding="ascii") as information:
                        if any(line.startswith("lock:") and line.endswith(wanted) for line in information):
                            return f"pid {pid}; is it stopped?"
        return "a process that cannot be seen from here"


def refused(path: str, error: OSError) -> TransportError:
    """The error to raise where a lock cannot even be asked for."""
    return TransportError(f"{path}: its file system refuses locks ({error.strerror}); the directory must be on another")
