"""The file messages.tdb: opened in its mode, locked, its space changed, repaired.

Dying.  A process can be killed at any instruction, inside libtdb, too.  Mutexes are robust: the next locker of a dead
process's lock gets it.  What is written into a record that has room for it is safe from a kill: first the data behind
what is there, then the new length.  What is not: libtdb's list of free space.  When it joins two free records, a kill
leaves the space of one in the list twice, and later two records in one place; and an append that has outgrown its
record deletes it first, so a kill, or a full disk, takes what others have written with it.  So

- no append ever outgrows its record: each is made with all of its room (make_place), and who appends knows that there
  is room (tdb_destination.py);
- space is taken and given back in changing_space() only: under the lock over all, with a record that says "changing"
  meanwhile.  Who finds it saying so under that lock knows that somebody was killed there.  The chains of records are
  whole whatever the instruction was (a record gets into one, or leaves it, by one word), so he lists anew what is in
  none of them (wire/tdb_space.py).  Nothing of the list is believed for that, so he may be killed at it, too.

Three appends may still take space unseen: that of a Samba 3.0, which knows nothing of this, that to a process which
died, and was cleaned up after, between a look at its lock and the append, and that to a slot of which a repair has kept
no more than what was in it.  Should the file be damaged by those, by a program or by a disk, libtdb says so to whoever
comes across it, or says only that the record of a living process is not there: no_record().  He makes the file anew
under the lock over all, with every record that can be read and a place for each process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import tdb

from msgd.backends.tdb.chain_lock import ChainLock, ChainLocks
from msgd.config import Config
from msgd.errors import BackendUnavailable, TransportError, UnsafeDirectory
from msgd.presence import RendezvousDirectory
from msgd.wire.tdb_record import SPACE_CHANGING, SPACE_KEY, SPACE_SOUND, key_source_pid
from msgd.wire.tdb_space import rebuilt_free_list

T = TypeVar("T")

logger = logging.getLogger("msgd")

FILE_NAME = "messages.tdb"
_MAGIC = b"TDB file\n"
_MUTEX_LOCKING = 4096
"""TDB_MUTEX_LOCKING; the Python module has no name for it."""
_MUTEX_CHAINS = 89
"""Hash chains of a file with mutexes: as many as have their mutexes in the file's first page.

That page is written when the file is made; the next would be a hole, and a full disk a SIGBUS.  Another number than
that of a file without mutexes (131), by which the two are told apart.
"""

_CORRUPT, _IO_ERROR, _LOCK_FAILED, _NO_RECORD = 1, 2, 3, 8
"""TDB_ERR_CORRUPT, TDB_ERR_IO, TDB_ERR_LOCK and TDB_ERR_NOEXIST: first arguments of the module's RuntimeError."""

PLACE = 32768
"""Bytes of room in a record that is made, or a multiple of it, so that the place of one fits the next."""


class MessagesTdb:
    """The open file.

    `tdb` is libtdb's own handle, for what reads, and writes into records that have the room.  Its calls raise
    RuntimeError: see repair().
    """

    def __init__(self, config: Config, directory: RendezvousDirectory, known_keys: Callable[[], set[bytes]]) -> None:
        """Open or make it; the first process of a directory finds it empty.

        `known_keys` gives keys that a repair looks for besides those it finds: the living's, and those of slots.
        Raises BackendUnavailable, UnsafeDirectory.
        """
        path = os.path.join(config.lock_directory, FILE_NAME)
        _set_aside_if_damaged(directory.directory_fd, path)
        self.tdb = _open(config, directory, os.O_CREAT)
        self._known_keys = known_keys
        status = os.stat(FILE_NAME, dir_fd=directory.directory_fd, follow_symlinks=False)
        self._inode = status.st_dev, status.st_ino
        self.chains = ChainLocks(self.tdb)

    def close(self) -> None:
        """Close the file."""
        self.tdb.close()

    # Locks

    @contextlib.contextmanager
    def all_locked(self) -> Iterator[None]:
        """Hold the lock over all of the file.

        Taken inside the `try`: a signal's handler that raises (KeyboardInterrupt) does so as soon as the lock is held.
        """
        try:
            self.tdb.lock_all()
            yield
        finally:
            self.tdb.unlock_all()

    @contextlib.contextmanager
    def all_keys(self) -> Iterator[list[bytes]]:
        """The keys of the messages, in the file that is locked meanwhile.

        A traversal locks the record it stands on by fcntl and then waits for the next chain's mutex; the lock over all
        has the mutexes and then waits for locked records.  Traversing under that lock keeps the two from dead-locking.
        """
        with self.all_locked():
            yield [key for key in list(self.tdb.keys()) if key != SPACE_KEY]

    # Space

    @contextlib.contextmanager
    def changing_space(self) -> Iterator[None]:
        """Make and delete records inside, and only here."""
        with self.all_locked():
            if self.tdb.get(SPACE_KEY) != SPACE_SOUND:
                self._list_free_space()
            self.tdb.store(SPACE_KEY, SPACE_CHANGING)
            try:
                yield
            finally:
                self.tdb.store(SPACE_KEY, SPACE_SOUND)

    def make_place(self, key: bytes, room: int = PLACE) -> None:
        """Make an empty record with so much room, in place of the one there may be.  Inside changing_space()."""
        self.delete(key)
        self.tdb.store(key, bytes(room))
        self.tdb.store(key, b"")

    def delete(self, key: bytes) -> None:
        """Delete a record, if it is there.  Inside changing_space()."""
        try:
            self.tdb.delete(key)
        except RuntimeError as error:
            if error.args[:1] != (_NO_RECORD,):
                raise

    def _list_free_space(self) -> None:
        """Make the list of free space anew: somebody may have been changing it when he was killed."""
        was_killed = self.tdb.get(SPACE_KEY) is not None
        try:
            is_listed = self._write_free_list()
        except OSError as error:
            raise RuntimeError(_IO_ERROR, error.strerror) from error
        if not is_listed:
            self._make_anew()
        elif was_killed:
            logger.info("messages.tdb: a process was killed while it changed the file; its free space is listed anew")

    def _write_free_list(self) -> bool:
        """Write it as it should be; False, and nothing is written, if that cannot be told."""
        fd = self._descriptor()
        size = 0 if fd is None else os.fstat(fd).st_size
        writes = None if fd is None else rebuilt_free_list(partial(os.pread, fd), size)
        if fd is None or writes is None:
            return False
        os.posix_fallocate(fd, 0, size)  # somebody may have been at making it longer
        for place, data in writes:
            os.pwrite(fd, data, place)
        return True

    def _descriptor(self) -> int | None:
        """The descriptor by which libtdb has the file open: another one would, once closed, drop its locks."""
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the listing's own is closed by now
                status = os.stat(f"/proc/self/fd/{name}")
                if (status.st_dev, status.st_ino) == self._inode:
                    return int(name)
        return None

    # Repair

    def repairing(self, action: Callable[[], T]) -> T:
        """What the action returns; if it finds the file damaged, after a repair.  Raises TransportError."""
        try:
            return action()
        except RuntimeError as error:
            self.repair(error)
        with tdb_errors():
            return action()

    def repair(self, error: RuntimeError) -> None:
        """Make the file usable again if this error says it is damaged; else raise it as TransportError."""
        if error.args[:1] == (_CORRUPT,):
            try:
                with self.all_locked():
                    self._make_anew()
            except RuntimeError:
                raise _transport_error(error) from error
        else:
            raise _transport_error(error) from error

    def _make_anew(self) -> None:
        """Put every record that can be read into an empty file.  Under the lock over all."""
        found: set[bytes] = set()
        with contextlib.suppress(RuntimeError):
            for key in self.tdb:  # as far as that goes
                if key in found:
                    break  # in a circle
                found.add(key)
        known = self._known_keys()
        records = {key: b"" for key in known if key_source_pid(key) is None}  # each has its place, read or not
        for key in (found | known) - {SPACE_KEY}:
            with contextlib.suppress(RuntimeError):
                value = self.tdb.get(key)
                if value is not None:
                    records[key] = value
        self.tdb.clear()
        self.tdb.store(SPACE_KEY, SPACE_CHANGING)
        for key, value in records.items():
            self.tdb.store(key, bytes(len(value) + -len(value) % PLACE or PLACE))
            self.tdb.store(key, value)
        self.tdb.store(SPACE_KEY, SPACE_SOUND)
        list(self.tdb.keys())  # a traversal that failed goes on holding the lock of a record: not any more
        logger.error("messages.tdb was damaged; it is made anew with %d queues", len(records))


def read_messages_tdb(config: Config, directory: RendezvousDirectory) -> dict[bytes, bytes]:
    """The records, for one who only looks; none if there is no file.  Raises BackendUnavailable, TransportError."""
    try:
        database = _open(config, directory, 0)
    except BackendUnavailable as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOENT, errno.EIO):
            return {}  # EIO: it has just been emptied, as nobody has it open
        raise
    try:
        with tdb_errors():
            database.lock_all()
            try:
                return {key: database.get(key) or b"" for key in list(database.keys())}
            finally:
                database.unlock_all()
    finally:
        database.close()


def acquire(chain: ChainLock) -> None:
    """Take a chain's lock; RuntimeError, as the module raises it, if it cannot be had."""
    if chain.acquire():
        raise RuntimeError(_LOCK_FAILED, "a record cannot be locked")


def no_record() -> RuntimeError:
    """The error by which the file is repaired: of a record in a chain that is broken libtdb says it is not there."""
    return RuntimeError(_CORRUPT, "a record is not there")


@contextlib.contextmanager
def tdb_errors() -> Iterator[None]:
    """Turn what the tdb module raises into TransportError."""
    try:
        yield
    except RuntimeError as error:
        raise _transport_error(error) from error


def _transport_error(error: RuntimeError) -> TransportError:
    return TransportError(f"messages.tdb: {error.args[-1]}; is its file system full?")


def _open(config: Config, directory: RendezvousDirectory, open_flags: int) -> tdb.Tdb:
    """The open file; BackendUnavailable, with the OSError as its cause if there is one, if it cannot be had."""
    flags, chains = tdb.CLEAR_IF_FIRST, 0
    if not config.use_mmap:
        flags |= tdb.NOMMAP
    elif config.tdb_mutexes:
        flags, chains = flags | _MUTEX_LOCKING, _MUTEX_CHAINS
    path = os.path.join(config.lock_directory, FILE_NAME)
    others = "living processes use it with another `msgd:tdb mutexes` or `use mmap`: give all of them the same"
    try:
        database = tdb.Tdb(
            f"/proc/self/fd/{directory.directory_fd}/{FILE_NAME}",
            chains,
            flags,
            os.O_RDWR | os.O_NOFOLLOW | open_flags,
            0o600,
        )
    except PermissionError as error:
        raise BackendUnavailable(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise BackendUnavailable(f"{path}: {error.strerror}; is its file system full? Perhaps {others}") from error
    if chains and database.hash_size != chains:  # libtdb is content with fcntl locks if it finds them in use
        database.close()
        raise BackendUnavailable(f"{path}: {others}")
    return database


def _set_aside_if_damaged(directory_fd: int, path: str) -> None:
    """Rename a file that is no tdb out of the way, so that the processes can start.

    Under a lock: of two that start, the second must not set aside what the first has made in its place.
    """
    fcntl.flock(directory_fd, fcntl.LOCK_EX)
    try:
        _rename_if_damaged(directory_fd, path)
    finally:
        fcntl.flock(directory_fd, fcntl.LOCK_UN)


def _rename_if_damaged(directory_fd: int, path: str) -> None:
    try:
        fd = os.open(FILE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnsafeDirectory(f"{path}: {error.strerror}; it must be a tdb file, remove it") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UnsafeDirectory(f"{path} is not a regular file; remove it")
        start = os.pread(fd, len(_MAGIC), 0)
    finally:
        os.close(fd)
    if start and start != _MAGIC:
        aside = f"{FILE_NAME}.damaged.{time.time_ns()}"
        os.rename(FILE_NAME, aside, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        logger.error("%s is no tdb file; it is set aside as %s and a new one made", path, aside)
