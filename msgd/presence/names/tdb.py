# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Names in names.tdb, as Samba 4.5 and later keep them.

The key is the name and a NUL.  The value is a list of server ids as text, each followed by a NUL.  Mode and flags are
Samba's: 0660, INCOMPATIBLE_HASH, no mutexes, CLEAR_IF_FIRST.  With CLEAR_IF_FIRST, the first process to open the file
empties it; as long as one process has it open with that flag, no other empties it.

Rule 1. A process opens the file at most once at a time.  libtdb's locks are fcntl locks, and closing any descriptor of
    the file would drop them all, among them the one that keeps others from emptying the file.  So there is one handle
    from the first use of names on, and a RendezvousDirectory in the same process reads through it (`_handles`).
Rule 2. A process that only reads, and has no handle, opens the file read-only.  libtdb then takes no locks, so the
    reader may see a half-made change.  If libtdb reports an error because of that, the reader starts again.
Rule 3. Every change, and every reading of all names through the handle, holds the lock on the whole file, for
    microseconds.  Python's tdb module cannot lock a single hash chain.  Samba's locks respect the lock on the whole
    file.

Rule 4. Before the handle is used, the file is checked: if it has been replaced, the new one is opened; if it has lost
    its header, or libtdb cannot open it, it is set aside and made anew.  If a chain of records leads to something that
    is no record, which libtdb follows in no process, the file is rebuilt in place, under the lock on the whole file,
    with all that can be reached.  So Samba's processes go on in the same file, and one that Samba can read stays where
    it is.  The handle does not map the file, since a mapped file that is cut off is a SIGBUS.
Rule 5. A process adds its own names again where they are missing: when it has opened or rebuilt a file, and before it
    reads all names, as each clean-up does.  Names of Samba's processes that could not be read do not come back.

A limit of Rule 2: libtdb moves a record that has outgrown its place by deleting it and adding it again.  A reader that
arrives between the two does not find the name, and nothing tells it so.  The next reading does find it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial

import tdb

from msgd import events
from msgd.errors import TransportError, UnsafeDirectory
from msgd.linux import descriptor_of
from msgd.presence.names.base import Entries, Names
from msgd.presence.private_lock import NAMES_FILE, PrivateLock
from msgd.wire.server_id import ServerID
from msgd.wire.tdb_space import has_sound_head, readable_records

logger = logging.getLogger("msgd")

FILE_NAME = "names.tdb"
_MODE = 0o660

_READ_ATTEMPTS = 5
"""A change takes microseconds, so a file that looks half-changed so many times in a row is damaged."""

_NOT_A_DATABASE = frozenset((errno.EIO, errno.EINVAL, errno.ENOSYS))
"""What libtdb refuses a file with whose header is damaged."""

_handles: dict[tuple[int, int], tdb.Tdb] = {}
"""This process's open handles, by device and inode of the directory (Rule 1)."""


class TdbNames(Names):
    """Names in the file names.tdb."""

    def __init__(self, directory_fd: int, directory: str) -> None:
        super().__init__(directory_fd, directory)
        self._identity = _identity(directory_fd)
        self._tdb: tdb.Tdb | None = None
        self._file = (0, 0)
        """Device and inode of the open file."""
        self._fd = -1
        """The descriptor that libtdb uses."""
        self._own: dict[str, None] = {}
        """The names that this process has added, as `entry name`, in that order."""

    @staticmethod
    def read(directory_fd: int, directory: str) -> dict[str, Entries]:
        handle = _handles.get(_identity(directory_fd))
        if handle is not None:
            return _read_locked(handle, directory)
        for _ in range(_READ_ATTEMPTS):
            try:
                database = tdb.Tdb(_path(directory_fd), 0, tdb.NOMMAP, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                return {}
            except OSError as error:
                if error.errno == errno.EIO:  # the file is being created
                    continue
                raise TransportError(f"{directory}/{FILE_NAME}: {error.strerror}") from error
            try:
                return _read_all(database)
            except RuntimeError:
                continue
            finally:
                database.close()
        raise TransportError(f"{directory}/{FILE_NAME}: it cannot be read; is it damaged?")

    def add(self, name: str, server_id: ServerID) -> None:
        super().add(name, server_id)
        self._own[f"{server_id} {name}"] = None

    def discard(self, name: str, unwanted: Collection[str]) -> None:
        for text in unwanted:
            self._own.pop(f"{text} {name}", None)
        super().discard(name, unwanted)

    def entries(self, name: str) -> Entries:
        database = self._open()
        if database is None:
            return []
        with _errors(self._directory):
            return _split(database.get(_pack(name)))

    def all_entries(self) -> dict[str, Entries]:
        database = self._open()
        if database is None:
            return {}
        self._rebuild_if_damaged(database)
        self._add_own()
        return _read_locked(database, self._directory)

    def _change(self, name: str, change: Callable[[Entries], Entries], *, create: bool = False) -> None:
        database = self._open(create=create)
        if database is None:
            return
        try:
            _change_record(database, self._directory, _pack(name), change)
        except TransportError:
            if not self._rebuild_if_damaged(database):
                raise
            _change_record(database, self._directory, _pack(name), change)

    def close(self) -> None:
        if self._tdb is not None:
            _handles.pop(self._identity, None)
            self._tdb.close()
            self._tdb = None

    # The file

    def _open(self, *, create: bool = False) -> tdb.Tdb | None:
        """This process's handle; None if there is no file and `create` is false.  Raises TransportError."""
        try:
            if self._tdb is None:
                if self._is_missing() and not create:
                    return None
            elif self._is_sound(self._tdb):
                return self._tdb
            self.close()
            database = self._open_file()
            self._rebuild_if_damaged(database)
            self._add_own()
        except OSError as error:
            raise TransportError(f"{self._directory}/{FILE_NAME}: {error.strerror}") from error
        return database

    def _is_sound(self, database: tdb.Tdb) -> bool:
        """Whether the open file still has the name and a header (Rule 4)."""
        if self._inode() != self._file:
            return False
        read, size = partial(os.pread, self._fd), os.fstat(self._fd).st_size
        if has_sound_head(read, size, database.hash_size):
            return True
        self._set_aside()
        return False

    def _inode(self) -> tuple[int, int] | None:
        try:
            status = os.stat(FILE_NAME, dir_fd=self._directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _open_file(self) -> tdb.Tdb:
        """Open the file that has the name, or make it; one that is no tdb file is set aside first."""
        self._file = self._inode() or (0, 0)
        if self._file != (0, 0) and self._has_lost_header():
            self._set_aside()
        is_new = self._is_missing()
        try:
            database = self._open_database()
        except OSError as error:
            self._file = self._inode() or (0, 0)
            if error.errno not in _NOT_A_DATABASE or not self._set_aside():
                raise
            is_new, database = True, self._open_database()
        self._tdb = _handles[self._identity] = database
        if is_new:
            os.chmod(FILE_NAME, _MODE, dir_fd=self._directory_fd)  # the umask has cleared some bits
        self._file = self._inode() or (0, 0)
        self._fd = descriptor_of(*self._file) or -1
        return database

    def _open_database(self) -> tdb.Tdb:
        flags = tdb.CLEAR_IF_FIRST | tdb.INCOMPATIBLE_HASH | tdb.NOMMAP
        return tdb.Tdb(_path(self._directory_fd), 0, flags, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _MODE)

    def _has_lost_header(self) -> bool:
        """Whether a file that no handle of ours refers to has bytes, and does not begin as a tdb file."""
        fd = os.open(FILE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory_fd)
        try:
            size = os.fstat(fd).st_size
            return bool(size) and not has_sound_head(partial(os.pread, fd), size)
        finally:
            os.close(fd)

    def _set_aside(self) -> bool:
        """Rename our file, unless the name belongs to another one by now.  Returns whether it did."""
        with PrivateLock(self._directory_fd, self._directory).held(NAMES_FILE):
            if self._inode() != self._file:
                return False
            aside = f"{FILE_NAME}.damaged.{time.time_ns()}"
            os.rename(FILE_NAME, aside, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
        path = f"{self._directory}/{FILE_NAME}"
        logger.error(
            "%s was damaged; it has been set aside as %s, and a new one is made. Processes of msgd's add their names"
            " again when they next use names; those of Samba's processes are lost", path, aside,
            extra=events.fields(events.FILE_DAMAGED, FILE=path),
        )  # fmt: skip
        return True

    def _rebuild_if_damaged(self, database: tdb.Tdb) -> bool:
        """Rebuild the file in place if a chain of it leads to what is no record.  Returns whether it did (Rule 4)."""
        read = partial(os.pread, self._fd)
        with _locked(database, self._directory):
            records, is_sound = readable_records(read, os.fstat(self._fd).st_size)
            if is_sound:
                return False
            database.clear()
            for key, value in records.items():
                database.store(key, value)
        self._add_own()
        path = f"{self._directory}/{FILE_NAME}"
        logger.error(
            "%s was damaged; it has been rebuilt with %d names. Processes of msgd's add others again when they next use"
            " names; those of Samba's processes are lost", path, len(records),
            extra=events.fields(events.FILE_DAMAGED, FILE=path),
        )  # fmt: skip
        return True

    def _add_own(self) -> None:
        """Add the names of this process again, where they are missing (Rule 5)."""
        for entry in tuple(self._own) if self._tdb is not None else ():
            text, _, name = entry.partition(" ")
            _change_record(self._tdb, self._directory, _pack(name), partial(_with, text))

    def _is_missing(self) -> bool:
        """Whether the file does not exist yet.  Raises UnsafeDirectory if its place is taken by something else."""
        try:
            status = os.stat(FILE_NAME, dir_fd=self._directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return True
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeDirectory(f"{self._directory}/{FILE_NAME} is not a regular file; remove it")
        return False


def _change_record(database: tdb.Tdb, directory: str, key: bytes, change: Callable[[Entries], Entries]) -> None:
    with _locked(database, directory):
        before = _split(database.get(key))
        after = change(before)
        if after and after != before:
            database.store(key, b"".join(_pack(text) for text in after))
        elif before and not after:
            database.delete(key)


def _with(text: str, entries: Entries) -> Entries:
    return entries if text in entries else [*entries, text]


def _identity(directory_fd: int) -> tuple[int, int]:
    status = os.fstat(directory_fd)
    return status.st_dev, status.st_ino


def _path(directory_fd: int) -> str:
    return f"/proc/self/fd/{directory_fd}/{FILE_NAME}"


def _pack(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape") + b"\0"


def _split(value: bytes | None) -> Entries:
    return [text for text in (value or b"").decode("utf-8", "surrogateescape").split("\0") if text]


def _read_all(database: tdb.Tdb) -> dict[str, Entries]:
    keys = list(database.keys())
    return {key.rstrip(b"\0").decode("utf-8", "surrogateescape"): _split(database.get(key)) for key in keys}


def _read_locked(database: tdb.Tdb, directory: str) -> dict[str, Entries]:
    with _locked(database, directory):
        return _read_all(database)


@contextlib.contextmanager
def _locked(database: tdb.Tdb, directory: str) -> Iterator[None]:
    with _errors(directory):
        database.lock_all()
        try:
            yield
        finally:
            database.unlock_all()


@contextlib.contextmanager
def _errors(directory: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TransportError(f"{directory}/{FILE_NAME}: {error.args[-1]}") from error
