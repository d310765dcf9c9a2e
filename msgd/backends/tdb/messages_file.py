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
import enum
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

import tdb

from msgd.backends.at_once import do
from msgd.backends.tdb.chain_lock import ChainLocks
from msgd.backends.tdb.libtdb import CORRUPT, IO_ERROR, NO_RECORD, tdb_errors, transport_error
from msgd.backends.tdb.opening import (
    DAMAGED,
    FILE_NAME,
    Inode,
    identity_of,
    open_file,
    read_messages_file,
    set_aside,
    set_aside_if_damaged,
)
from msgd.backends.tdb.repair import SLACK, is_mostly_free, rebuild_file, rebuild_free_list, shrink
from msgd.config import Config
from msgd.errors import TransportError
from msgd.linux import descriptor_of
from msgd.native import native
from msgd.presence import Presence
from msgd.wire.tdb_record import SPACE_CHANGING, SPACE_KEY, SPACE_SOUND, split_by_source
from msgd.wire.tdb_space import HEAD_SIZE, has_sound_head, is_cut_off

T = TypeVar("T")

logger = logging.getLogger("msgd")

__all__ = ["ROOM", "Before", "FileState", "MessagesFile", "read_messages_file"]

_ATTEMPTS = 5
"""How often the file is opened at most, if each time it is replaced before we have looked which one it is."""

ROOM = 40960
"""Bytes of room that a record is made with, or a multiple of it, so that the space of one record fits the next."""


class FileState(enum.Enum):
    """What has become of the file since we opened it."""

    SAME = enum.auto()
    REPLACED = enum.auto()
    """Another file has its name, or none."""
    DAMAGED = enum.auto()
    """It has been overwritten, or cut off, in place."""


class Opened(NamedTuple):
    """A file that has been opened."""

    tdb: tdb.Tdb
    chains: ChainLocks
    inode: Inode
    size: int
    """Its size when we last looked."""
    fd: int
    """The descriptor that libtdb uses."""


class Before(NamedTuple):
    """The file that we used before we moved to another one (moving.py); `is_sound`: whether it can be read."""

    tdb: tdb.Tdb
    chains: ChainLocks
    inode: Inode
    is_sound: bool


class MessagesFile:
    """The open file.

    `tdb` is libtdb's own handle, for reading and for writing into records that have room.  Its methods raise
    RuntimeError; pass that to repair().
    """

    def __init__(self, config: Config, directory: Presence) -> None:
        """Open the file, or make it; if no living process has it open, it is emptied first.

        Raises BackendUnavailable, UnsafeDirectory.
        """
        self.keys_of_the_living: Callable[[], set[bytes]] = set
        """Returns the keys of the records that there must be after a repair."""
        self.look: Callable[[], bool] = lambda: False
        """Moves to another file if ours has been replaced or damaged; returns whether it has (moving.py)."""
        self.before: Before | None = None
        """The file before this one, until nothing of ours is left in it."""
        self._config = config
        self._directory = directory
        self._path = os.path.join(config.lock_directory, FILE_NAME)
        self.tdb: tdb.Tdb
        self.chains: ChainLocks
        self.inode: Inode
        self.size: int
        self.sound_head: bytes
        """How the file began when state() last found it sound; empty before that."""
        self.fd: int
        """We must not open the file a second time: closing that descriptor would drop the fcntl locks of this one."""
        self._deleted: int
        """Bytes that this process has deleted since it last checked whether the file is mostly free."""
        self.use(self.open())
        library = None if native is None else self.chains.addresses()
        self.compiled = None if library is None else native.Library(library)
        """libtdb for the compiled hot path; None without one."""

    def open(self) -> Opened:
        """Open the file that has the name now, or make it.  Raises BackendUnavailable, UnsafeDirectory, TransportError.

        The one that is in use stays open until nothing refers to it: another thread may just be reading it.
        """
        set_aside_if_damaged(self._directory.directory_fd, self._path)
        try:
            for _ in range(_ATTEMPTS):
                database = open_file(self._config, self._directory, os.O_CREAT)
                inode, size = identity_of(self._directory.directory_fd)
                fd = descriptor_of(*inode)
                if fd is not None:
                    return Opened(database, ChainLocks(database), inode, size, fd)
        except OSError as error:
            raise TransportError(f"{self._path}: {error.strerror}") from error
        raise TransportError(f"{self._path}: it is replaced again and again")

    def use(self, opened: Opened, before: Before | None = None) -> None:
        """Use this file from now on, in one step: see at_once.py."""
        vars(self).update(opened._asdict(), before=before, sound_head=b"", _deleted=0)

    def use_compiled(self) -> None:
        """Let the compiled hot path use this file, too."""
        if self.compiled is not None:
            library = self.chains.addresses()
            if library is None:
                self.compiled.close()
            else:
                self.compiled.open(library)

    def close(self) -> None:
        """Close the file."""
        if self.compiled is not None:
            self.compiled.close()
        self.tdb.close()

    # Its state

    def is_unchanged(self) -> bool:
        """Whether state() would say SAME because all that it looks at is as it was when it last did.

        This is asked at each wake-up: two system calls, nothing is decoded, and it costs less than half of look().
        """
        try:
            named = os.stat(FILE_NAME, dir_fd=self._directory.directory_fd, follow_symlinks=False)
            head = os.pread(self.fd, HEAD_SIZE, 0)
        except OSError:
            return False  # state() finds out what it is
        inode = named.st_dev, named.st_ino
        return inode == self.inode and named.st_size == self.size and head == self.sound_head and self.before is None

    def state(self) -> FileState:
        """Whether the file is still the one that has the name, and begins as a tdb file does.

        Raises OSError, and RuntimeError as libtdb does.
        """
        inode, size = identity_of(self._directory.directory_fd)
        if inode != self.inode:
            return FileState.REPLACED
        head = os.pread(self.fd, HEAD_SIZE, 0)
        if not self._has_sound_head():
            return FileState.DAMAGED
        if size < self.size:  # as after shrink()
            with self.all_locked():
                if self._is_cut_off():
                    return FileState.DAMAGED
        self.size, self.sound_head = size, head
        return FileState.SAME

    def is_sound(self) -> bool:
        """Whether the file, which no longer has the name, was not set aside because it is damaged.  Raises OSError."""
        return DAMAGED not in os.readlink(f"/proc/self/fd/{self.fd}") and self._has_sound_head()

    def _has_sound_head(self) -> bool:
        return has_sound_head(partial(os.pread, self.fd), os.fstat(self.fd).st_size, self.tdb.hash_size)

    def set_aside(self) -> None:
        """Rename our file, unless it no longer has the name.  Raises TransportError, UnsafeDirectory."""
        set_aside(self._directory.directory_fd, self._path, self.inode)

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
        if is_mostly_free(self.fd):
            self.tdb.store(SPACE_KEY, SPACE_CHANGING)
            if shrink(self.fd):
                self.tdb.store(SPACE_KEY, SPACE_SOUND)

    def ensure_record(self, key: bytes, room: int = ROOM) -> None:
        """Make a record as make_record() does, unless there is one.  Inside changing_space()."""
        if self.tdb.get(key) is None:
            self.make_record(key, room)

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
        if not rebuild_free_list(self.fd):
            rebuild_file(self.tdb, self.fd, self.keys_of_the_living(), ROOM)
        elif was_killed:
            logger.info("a process was killed while it changed messages.tdb; the list of free space has been rebuilt")

    def carry_over(self, before: Before, key: bytes, pid: int) -> bool:
        """Move what `pid` has put into a record of the file before this one to the same record here.

        Returns whether there was anything.
        """
        chain = before.chains.of(key)
        try:
            chain.lock()
            own, others = split_by_source(before.tdb.get(key) or b"", pid)
            if own:
                with self.changing_space():
                    do((partial(self.tdb.append, key, own), partial(before.tdb.store, key, others)))
            return bool(own)
        finally:
            chain.release()

    # Repair

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
        """Rebuild the file, or move to a new one, if `error` says that it is damaged.

        Raises TransportError from `error` if it says something else, or the system refuses that.
        """
        if self.look():
            return
        try:
            with self.all_locked():
                is_missing_something = error.args[:1] in ((CORRUPT,), (IO_ERROR,)) and self._is_cut_off()
                if error.args[:1] == (CORRUPT,) and not is_missing_something:
                    rebuild_file(self.tdb, self.fd, self.keys_of_the_living(), ROOM)
                    return
        except (RuntimeError, OSError):
            raise transport_error(error) from error
        if not is_missing_something:
            raise transport_error(error) from error
        self.set_aside()
        self.look()

    def _is_cut_off(self) -> bool:
        """Whether something of the file is missing.  Under the lock over all."""
        return is_cut_off(partial(os.pread, self.fd), os.fstat(self.fd).st_size)
