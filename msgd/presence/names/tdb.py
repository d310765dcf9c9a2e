"""Names in names.tdb, as Samba 4.5 and later keep them.

Key: the name and a NUL.  Value: server ids as text, each ended by a NUL.  The file is Samba's in every respect: 0660,
incompatible hash, no mutexes, emptied by the first to open it (libtdb's CLEAR_IF_FIRST: while one process has it open
with that flag, nobody empties it).

Locks are fcntl's, so closing any descriptor of the file would drop those that the process has.  Therefore a process
has one handle for it, from its first use of a name on, and looking takes that handle where there is one.  Otherwise a
look opens the file for reading only: libtdb then takes no lock, and a reader can meet a change half made.

The Python module has no lock for a chain, so what must be one step is done under the lock over the whole file, for
microseconds; Samba's own locks respect it, and a traversal under it sees no change.
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
"""A change takes microseconds; a reader that meets one half made so often has a damaged file before it."""

_handles: dict[tuple[int, int], tdb.Tdb] = {}
"""The open files of this process, by device and inode of their directory."""


class TdbNames(Names):
    """The names in names.tdb."""

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
                looked = tdb.Tdb(_path(directory_fd), 0, tdb.NOMMAP, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                return {}
            except OSError as error:
                if error.errno == errno.EIO:  # as it is just being made
                    continue
                raise TransportError(f"{directory}/{FILE_NAME}: {error.strerror}") from error
            try:
                return _read_all(looked)
            except RuntimeError:
                continue
            finally:
                looked.close()
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
        """The process's handle; None if there is no file and none is to be made."""
        if self._tdb is None:
            is_new = self._is_missing()
            if is_new and not create:
                return None
            flags = tdb.CLEAR_IF_FIRST | tdb.INCOMPATIBLE_HASH
            try:
                self._tdb = tdb.Tdb(_path(self._directory_fd), 0, flags, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _MODE)
                _handles[self._identity] = self._tdb
                if is_new:
                    os.chmod(FILE_NAME, _MODE, dir_fd=self._directory_fd)  # the umask has taken some of it
            except OSError as error:
                raise TransportError(f"{self._directory}/{FILE_NAME}: {error.strerror}") from error
        return self._tdb

    def _is_missing(self) -> bool:
        """Whether there is no file yet; UnsafeDirectory if there is something else in its place."""
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
