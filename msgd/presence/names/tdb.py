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

A limit of Rule 2: libtdb moves a record that has outgrown its place by deleting it and adding it again.  A reader that
arrives between the two does not find the name, and nothing tells it so.  The next reading does find it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

import tdb

from msgd.errors import TransportError, UnsafeDirectory
from msgd.presence.names.base import Entries, Names

FILE_NAME = "names.tdb"
_MODE = 0o660

_READ_ATTEMPTS = 5
"""A change takes microseconds, so a file that looks half-changed so many times in a row is damaged."""

_handles: dict[tuple[int, int], tdb.Tdb] = {}
"""This process's open handles, by device and inode of the directory (Rule 1)."""


class TdbNames(Names):
    """Names in the file names.tdb."""

    def __init__(self, directory_fd: int, directory: str) -> None:
        super().__init__(directory_fd, directory)
        self._identity = _identity(directory_fd)
        self._tdb: tdb.Tdb | None = None

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

    def entries(self, name: str) -> Entries:
        database = self._open()
        if database is None:
            return []
        with _errors(self._directory):
            return _split(database.get(_pack(name)))

    def all_entries(self) -> dict[str, Entries]:
        database = self._open()
        return {} if database is None else _read_locked(database, self._directory)

    def _change(self, name: str, change: Callable[[Entries], Entries], *, create: bool = False) -> None:
        database = self._open(create=create)
        if database is None:
            return
        key = _pack(name)
        with _locked(database, self._directory):
            before = _split(database.get(key))
            after = change(before)
            if after and after != before:
                database.store(key, b"".join(_pack(text) for text in after))
            elif before and not after:
                database.delete(key)

    def close(self) -> None:
        if self._tdb is not None:
            _handles.pop(self._identity, None)
            self._tdb.close()
            self._tdb = None

    def _open(self, *, create: bool = False) -> tdb.Tdb | None:
        """This process's handle; None if there is no file and `create` is false."""
        if self._tdb is None:
            is_new = self._is_missing()
            if is_new and not create:
                return None
            flags = tdb.CLEAR_IF_FIRST | tdb.INCOMPATIBLE_HASH
            try:
                self._tdb = tdb.Tdb(_path(self._directory_fd), 0, flags, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _MODE)
                _handles[self._identity] = self._tdb
                if is_new:
                    os.chmod(FILE_NAME, _MODE, dir_fd=self._directory_fd)  # the umask has cleared some bits
            except OSError as error:
                raise TransportError(f"{self._directory}/{FILE_NAME}: {error.strerror}") from error
        return self._tdb

    def _is_missing(self) -> bool:
        """Whether the file does not exist yet.  Raises UnsafeDirectory if its place is taken by something else."""
        try:
            status = os.stat(FILE_NAME, dir_fd=self._directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return True
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeDirectory(f"{self._directory}/{FILE_NAME} is not a regular file; remove it")
        return False


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
