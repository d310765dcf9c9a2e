# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The table of publishers: a small mapped file that says how much has been published in a directory, and by which slot.

    offset 0    8 bytes "msgdpub\\x01", u64 a random id of this table, in native byte order
    offset 16   four words of 8 bytes, in native byte order, used in a cluster: when the last publication was counted,
                when the other nodes were told the numbers, and when a roll was answered (nanoseconds of
                CLOCK_MONOTONIC); the sum of the numbers that were told, and 1; 0: they are to be told
    offset 64   1024 words of 8 bytes, in native byte order: the slots

A publisher takes a slot, and adds 1 to it before each publication, which carries slot and number.  So what a subscriber
has handled and what has been published can be compared at any time, by anybody, without asking a process.

Rule 1.  A slot is one process's at a time.  The lock on its first byte (F_OFD_SETLK) says whose, and the kernel drops
    it with the process.  The next one goes on with the numbers: the slots only ever grow.  So a publication that a
    killed process has counted and not sent is missed, whoever has the slot by then.
Rule 2.  The number is in the table before the first byte of the publication leaves.  A kill in between shows as a
    publication that never comes, which is a false gap; the other order would hide a lost one.
Rule 3.  The descriptor that has the lock is not the one that is mapped: a mapping keeps its file open, in a forked
    child too, and with it the lock of a dead publisher.
Rule 4.  The file is private (0600) and whole from its first moment: it is filled, and given its name afterwards.  Its
    room on the disk is taken then, since a full disk would kill who touches it (SIGBUS).
Rule 5.  A table that somebody has unlinked is replaced by a new one, which has another id.
Rule 6.  In a cluster, the time of a publication is in the table before its number is, and numbers are read before the
    time.  So a number that is seen was counted at that time or before it.

Rejected: one counter for all, which needs an atomic addition that Python does not have, or a lock, for which a stopped
process would hold up everybody; the size of a file to which everybody appends a byte, which grows without bound.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
import time
from collections.abc import Iterator

from msgd.errors import ContextClosed, TransportError, UnsafeDirectory
from msgd.linux import try_lock
from msgd.presence.open_directory import open_existing
from msgd.presence.private_lock import PUBLISHERS_FILE, PrivateLock, refused
from msgd.wire.pubsub import Numbers

FILE = "publishers"

SLOTS = 1024
"""Processes that can publish in a directory at a time.  Those that only subscribe need no slot."""

_MAGIC = b"msgdpub\x01"
_HEADER = struct.Struct("=8sQ")
_FIRST = 64
_SIZE = _FIRST + SLOTS * 8

NOTHING = bytes(SLOTS * 8)
"""The slots of a table in which nothing has been published."""


_PAUSE, _SHORT_PAUSE = 1_000_000_000, 50_000_000
"""Nanoseconds."""

_LAST_COUNTED, _LAST_TOLD, _LAST_ROLL, _TOLD_SUM = range(4)


class Table:
    """The table of a directory, mapped for as long as it is used.

    `create`: make it if it is missing; otherwise that is a FileNotFoundError.  Raises UnsafeDirectory, TransportError.
    """

    def __init__(self, directory: str, *, create: bool = True) -> None:
        self.path = os.path.join(directory, FILE)
        try:
            directory_fd = open_existing(directory)
            try:
                self._fd = _open(directory_fd, directory, self.path, create)
            finally:
                os.close(directory_fd)
            try:
                self._map = mmap.mmap(self._fd, _SIZE)
            except BaseException:
                os.close(self._fd)
                raise
        except FileNotFoundError:
            raise
        except OSError as error:
            raise TransportError(f"{self.path}: {error.strerror}") from error
        self.id: int = _HEADER.unpack_from(self._map)[1]
        self._words = memoryview(self._map)[_FIRST:].cast("Q")
        self._cluster = memoryview(self._map)[_HEADER.size : _HEADER.size + 32].cast("Q")

    def snapshot(self) -> bytes:
        """All slots as they are now.  A publication that began before this call is counted.  Raises ContextClosed."""
        try:
            return self._map[_FIRST:]
        except ValueError:
            raise ContextClosed("this PubSub has been closed") from None

    def number(self, slot: int) -> int:
        """The number of the last publication of a slot."""
        return self._words[slot]

    def generation(self) -> int:
        """How much has been published in the directory, by all its publishers."""
        return sum(self._words)

    # For other nodes.  All of these raise ContextClosed.

    @contextlib.contextmanager
    def _for_cluster(self) -> Iterator[memoryview[int]]:
        try:
            yield self._cluster
        except ValueError:
            raise ContextClosed("this table of publishers has been closed") from None

    def note_time(self) -> None:
        """A publication is about to be counted, or has just been (Rule 6)."""
        with self._for_cluster() as words:
            words[_LAST_COUNTED] = time.monotonic_ns()

    def numbers(self) -> Numbers:
        """What the other nodes are told: the numbers, and how long nothing has been counted."""
        slots = memoryview(self.snapshot()).cast("Q")
        with self._for_cluster() as words:
            quiet = max(0, time.monotonic_ns() - words[_LAST_COUNTED])
        return Numbers(self.id, quiet / 1e9, {slot: number for slot, number in enumerate(slots) if number})

    def tell_soon(self) -> None:
        """Somebody on another node wants to know the numbers."""
        with self._for_cluster() as words:
            words[_TOLD_SUM] = 0

    def is_to_be_told(self) -> bool:
        """Whether this process is to tell the other nodes the numbers now, and note that it does.

        They are told after a change, at most once in _PAUSE, and when somebody asks, at most once in _SHORT_PAUSE.
        """
        with self._for_cluster() as words:
            now, number, told = time.monotonic_ns(), self.generation() + 1, words[_TOLD_SUM]
            if told == number or 0 <= now - words[_LAST_TOLD] < (_PAUSE if told else _SHORT_PAUSE):
                return False
            words[_LAST_TOLD], words[_TOLD_SUM] = now, number
            return True

    def note_roll(self) -> None:
        """This process answers a roll."""
        with self._for_cluster() as words:
            words[_LAST_ROLL] = time.monotonic_ns()

    def last_roll(self) -> int:
        """When a roll was last answered, in nanoseconds of the monotonic clock."""
        with self._for_cluster() as words:
            return words[_LAST_ROLL]

    @property
    def is_unlinked(self) -> bool:
        """Whether the file has lost its name (Rule 5)."""
        return self._fd >= 0 and os.fstat(self._fd).st_nlink == 0

    def take_slot(self) -> Slot:
        """A slot that nobody has.  Raises TransportError if there is none."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise TransportError(f"{self.path}: {error.strerror}") from error
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, fd)
            if not os.path.sameopenfile(fd, self._fd):
                raise TransportError(f"{self.path} has just been replaced; publish again")
            index = self._lock_one(fd)
            opened.pop_all()
        return Slot(self._words, index, fd)

    def _lock_one(self, fd: int) -> int:
        try:
            for index in range(SLOTS):
                if try_lock(fd, _FIRST + 8 * index):
                    return index
        except OSError as error:
            raise refused(self.path, error) from error
        raise TransportError(f"{self.path}: {SLOTS} processes publish here already; close some, or use two directories")

    def close(self) -> None:
        """Close the file and the mapping.  Slots are to be released before."""
        fd, self._fd = self._fd, -1
        os.close(fd)
        self._words.release()
        self._cluster.release()
        self._map.close()


class Slot:
    """This process's slot; one thread at a time uses it."""

    def __init__(self, words: memoryview[int], index: int, fd: int) -> None:
        self._words = words
        self.index = index
        self._fd = fd

    def advance(self) -> int:
        """Count one more publication.  Returns its number."""
        self._words[self.index] += 1
        return self._words[self.index]

    def release(self) -> None:
        """Leave the slot to others.  In a forked child: close the copy of the parent's lock, which stays (Rule 3)."""
        os.close(self._fd)


def _open(directory_fd: int, directory: str, path: str, create: bool) -> int:
    """The file, checked.  Raises OSError, UnsafeDirectory, TransportError."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(FILE, flags, dir_fd=directory_fd)
    except FileNotFoundError:
        if not create:
            raise
        with PrivateLock(directory_fd, directory).held(PUBLISHERS_FILE):
            try:
                fd = os.open(FILE, flags, dir_fd=directory_fd)
            except FileNotFoundError:
                fd = _make(directory_fd, flags)
    try:
        _check(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make(directory_fd: int, flags: int) -> int:
    """A new table, under the lock.  What a killed process has left of one is overwritten."""
    new = f"{FILE}.new"
    fd = os.open(new, flags | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=directory_fd)
    try:
        os.fchmod(fd, 0o600)
        os.posix_fallocate(fd, 0, _SIZE)
        os.pwrite(fd, _HEADER.pack(_MAGIC, int.from_bytes(os.urandom(8))), 0)
        if os.geteuid() == 0:  # root was the first, in the directory of another user
            os.fchown(fd, os.fstat(directory_fd).st_uid, -1)
        os.rename(new, FILE, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(fd: int, path: str) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        raise UnsafeDirectory(f"{path} must be a regular file that only its owner can open; remove it")
    if status.st_size != _SIZE or os.pread(fd, len(_MAGIC), 0) != _MAGIC:
        raise UnsafeDirectory(f"{path} is no table of publishers; remove it: the next process makes a new one")
