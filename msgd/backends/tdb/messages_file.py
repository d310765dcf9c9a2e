# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The file messages.tdb: its modes, its locks, and the two rules that keep it whole when a process is killed.

A process can be killed at any instruction, also inside libtdb.  Its mutexes are no problem: they are robust, so the
next process to lock the mutex of a dead one gets it.  Writing into a record that has room is no problem either: libtdb
writes the data behind the old data first, and the new length after it.  The problem is libtdb's list of free space.
When libtdb joins two free records, a kill can leave the space of one of them in the list twice, and later two records
are in the same place.  And when an append outgrows its record, libtdb first deletes the record and then stores a larger
one: a kill in between, or a full disk, loses what other processes have written there.  Therefore:

Rule 1. No append outgrows its record.  make_record() makes a record with all of its room at once, and a process appends
only if it knows that there is room (outgoing.py, grants.py).

Rule 2. Records are made and deleted inside changing_space() only.  It holds the lock over the whole file, and the
record `msgd/space` says "changing" meanwhile.  A process that gets this lock and reads "changing" knows that another
one was killed inside, and rebuilds the list of free space before it takes anything from it (repair.py).

Rule 3. The file is made shorter while it is used.  A process that has deleted an eighth of its length, and every
clean-up, checks whether most of it is free (shrink()).  Nobody keeps the place of a record: libtdb looks for it at each
access, under the lock of its chain.

What remains.  Three appends can still take space outside rule 2: one by Samba 3.0, which does not know the rules; one
to a process that died, and was cleaned up, between the check of its lock and the append; and one to a slot of which a
rebuilt file has kept only the contents.  If one of these is killed, or if a program or a disk damages the file, libtdb
reports damage to the next process that meets it, or it does not find the record of a living process
(libtdb.missing_record).  That process rebuilds the file: repair() and repairing().
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import tdb

from msgd.backends.tdb.chain_lock import ChainLocks
from msgd.backends.tdb.libtdb import CORRUPT, IO_ERROR, MUTEX_LOCKING, NO_RECORD, tdb_errors, transport_error
from msgd.backends.tdb.repair import SLACK, is_mostly_free, rebuild_file, rebuild_free_list, shrink
from msgd.config import Config
from msgd.errors import BackendUnavailable, UnsafeDirectory
from msgd.native import native
from msgd.presence import Presence, RendezvousDirectory
from msgd.presence.private_lock import MESSAGES_FILE, PrivateLock
from msgd.wire.tdb_record import SPACE_CHANGING, SPACE_KEY, SPACE_SOUND

T = TypeVar("T")

logger = logging.getLogger("msgd")

FILE_NAME = "messages.tdb"
_MAGIC = b"TDB file\n"
_MUTEX_CHAINS = 89
"""Number of hash chains of a file with mutexes: the largest number whose mutexes fit into the file's first page.

libtdb writes the first page when it makes the file.  A second page would be a hole, and a full disk would then be a
SIGBUS.  The number differs from that of a file without mutexes (131), so that the two kinds can be told apart.
"""

ROOM = 32768
"""Bytes of room that a record is made with, or a multiple of it, so that the space of one record fits the next."""


class MessagesFile:
    """The open file.

    `tdb` is libtdb's own handle, for reading and for writing into records that have room.  Its methods raise
    RuntimeError; pass that to repair().
    """

    def __init__(self, config: Config, directory: Presence) -> None:
        """Open the file, or make it; if no living process has it open, it is emptied first.

        Raises BackendUnavailable, UnsafeDirectory.
        """
        path = os.path.join(config.lock_directory, FILE_NAME)
        _set_aside_if_damaged(directory.directory_fd, path)
        self.tdb = _open(config, directory, os.O_CREAT)
        self.key_sources: list[Callable[[], set[bytes]]] = []
        """They return the keys that a repair looks for besides those it finds: those of the living, and of slots."""
        status = os.stat(FILE_NAME, dir_fd=directory.directory_fd, follow_symlinks=False)
        self._inode = status.st_dev, status.st_ino
        self.chains = ChainLocks(self.tdb)
        library = None if native is None else self.chains.addresses()
        self.compiled = None if library is None else native.Library(library)
        """libtdb for the compiled hot path; None without one."""
        self._deleted = 0
        """Bytes that this process has deleted since it last checked whether the file is mostly free."""

    def close(self) -> None:
        """Close the file."""
        if self.compiled is not None:
            self.compiled.close()
        self.tdb.close()

    def descriptor(self) -> int | None:
        """The file descriptor that libtdb uses.  Raises RuntimeError as libtdb does.

        We must not open the file a second time: closing that descriptor would drop the fcntl locks of this one.
        """
        try:
            names = os.listdir("/proc/self/fd")
        except OSError as error:
            raise RuntimeError(IO_ERROR, error.strerror) from error
        for name in names:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
                status = os.stat(f"/proc/self/fd/{name}")
                if (status.st_dev, status.st_ino) == self._inode:
                    return int(name)
        return None

    # Locks

    @contextlib.contextmanager
    def all_locked(self) -> Iterator[None]:
        """Hold the lock over the whole file.

        It is taken inside the `try` because a signal handler can raise (KeyboardInterrupt) as soon as it is held.
        """
        try:
            self.tdb.lock_all()
            yield
        finally:
            self.tdb.unlock_all()

    @contextlib.contextmanager
    def all_keys(self) -> Iterator[list[bytes]]:
        """The keys of all records with messages.  The whole file is locked inside.

        Without that lock, a traversal could dead-lock with a process that takes it: a traversal locks its current
        record by fcntl and then waits for the next chain's mutex; the other has all mutexes and waits for locked
        records.
        """
        with self.all_locked():
            yield [key for key in list(self.tdb.keys()) if key != SPACE_KEY]

    # Space

    @contextlib.contextmanager
    def changing_space(self) -> Iterator[None]:
        """Make and delete records inside, and nowhere else (rule 2)."""
        with self.all_locked():
            if self.tdb.get(SPACE_KEY) != SPACE_SOUND:
                self._rebuild_free_list()
            self.tdb.store(SPACE_KEY, SPACE_CHANGING)
            try:
                yield
            finally:
                self.tdb.store(SPACE_KEY, SPACE_SOUND)
            if self._deleted > max(SLACK, self.tdb.map_size // 8):
                self._shrink()

    def shrink(self) -> None:
        """Make the file shorter if most of it is free."""
        with self.all_locked():
            if self.tdb.get(SPACE_KEY) == SPACE_SOUND:
                self._shrink()

    def _shrink(self) -> None:
        """Do what shrink() does.  Under the lock over all, with a sound list of free space."""
        self._deleted = 0
        fd = self.descriptor()
        if fd is not None and is_mostly_free(fd):
            self.tdb.store(SPACE_KEY, SPACE_CHANGING)
            if shrink(fd):
                self.tdb.store(SPACE_KEY, SPACE_SOUND)

    def make_record(self, key: bytes, room: int = ROOM) -> None:
        """Make an empty record with `room` bytes of room, in place of an existing one.  Inside changing_space()."""
        self.delete(key)
        self.tdb.store(key, bytes(room))
        self.tdb.store(key, b"")

    def delete(self, key: bytes, room: int = ROOM) -> None:
        """Delete a record with this room, if it exists.  Inside changing_space()."""
        try:
            self.tdb.delete(key)
            self._deleted += room
        except RuntimeError as error:
            if error.args[:1] != (NO_RECORD,):
                raise

    def _rebuild_free_list(self) -> None:
        """Rebuild the list of free space, since a process may have been killed while it changed it."""
        was_killed = self.tdb.get(SPACE_KEY) is not None
        fd = self.descriptor()
        if fd is None or not rebuild_free_list(fd):
            rebuild_file(self.tdb, self._known_keys(), ROOM)
        elif was_killed:
            logger.info("a process was killed while it changed messages.tdb; the list of free space has been rebuilt")

    # Repair

    def _known_keys(self) -> set[bytes]:
        return set[bytes]().union(*(keys() for keys in self.key_sources))

    def repairing(self, action: Callable[[], T]) -> T:
        """The result of `action`; if it finds the file damaged, repair the file and try once more.

        Raises TransportError.
        """
        try:
            return action()
        except RuntimeError as error:
            self.repair(error)
        with tdb_errors():
            return action()

    def repair(self, error: RuntimeError) -> None:
        """Rebuild the file if `error` says that it is damaged; otherwise raise TransportError from `error`."""
        if error.args[:1] != (CORRUPT,):
            raise transport_error(error) from error
        try:
            with self.all_locked():
                rebuild_file(self.tdb, self._known_keys(), ROOM)
        except RuntimeError:
            raise transport_error(error) from error


def read_messages_file(config: Config, directory: RendezvousDirectory) -> dict[bytes, bytes]:
    """All records, for a process that only looks at the file; empty if there is no file.

    Raises BackendUnavailable, TransportError.
    """
    try:
        database = _open(config, directory, 0)
    except BackendUnavailable as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOENT, errno.EIO):
            return {}  # EIO: libtdb has just emptied it, as no process has it open
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


def _open(config: Config, directory: Presence | RendezvousDirectory, open_flags: int) -> tdb.Tdb:
    """Open the file in the configured mode.  Raises BackendUnavailable, with the OSError, if any, as its cause."""
    flags, chains = tdb.CLEAR_IF_FIRST, 0
    if not config.use_mmap:
        flags |= tdb.NOMMAP
    elif config.tdb_mutexes:
        flags, chains = flags | MUTEX_LOCKING, _MUTEX_CHAINS
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
    if chains and database.hash_size != chains:  # libtdb silently falls back to fcntl locks if it finds them in use
        database.close()
        raise BackendUnavailable(f"{path}: {others}")
    return database


def _set_aside_if_damaged(directory_fd: int, path: str) -> None:
    """Rename a file that is not a tdb file, so that processes can start.

    Under a lock: of two processes that start, the second must not set aside the file that the first has just made.
    """
    with PrivateLock(directory_fd, os.path.dirname(path)).held(MESSAGES_FILE):
        _rename_if_damaged(directory_fd, path)


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
        logger.error("%s is not a tdb file; it has been set aside as %s, and a new one is made", path, aside)
