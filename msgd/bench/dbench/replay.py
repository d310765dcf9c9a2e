# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Replay a load file: carry out each operation on real files, and inform the other clients."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from msgd.bench.dbench.load import Operation
from msgd.bench.dbench.open_files import file_id
from msgd.bench.dbench.sharing import Sharing
from msgd.bench.workers import RunFailed

_DIRECTORY_FILE = 0x1
"""The create option that asks for a directory."""

_SUPERSEDE, _OPEN, _CREATE, _OPEN_IF, _OVERWRITE, _OVERWRITE_IF = range(6)
_FLAGS = {
    _SUPERSEDE: os.O_CREAT | os.O_TRUNC,
    _OPEN: 0,
    _CREATE: os.O_CREAT | os.O_EXCL,
    _OPEN_IF: os.O_CREAT,
    _OVERWRITE: os.O_TRUNC,
    _OVERWRITE_IF: os.O_CREAT | os.O_TRUNC,
}
"""The flags of open(2) for each create disposition."""

_PLACEHOLDER = "client1"
_VISIT_BYTES = 4096
_BUFFER = 1 << 20


class _Handle(NamedTuple):
    fd: int
    file: bytes | None
    """The file's identity in the table of open files; None for a directory."""


class Unexpected(RunFailed):
    """The result of an operation differs from that in the load file."""


class Tally(NamedTuple):
    """What a client did: bytes read and written, operations, and the seconds that they took."""

    bytes: int
    operations: int
    seconds: float


def own_directory(client: int) -> str:
    """The path that the load file's `\\clients\\client1` stands for in a client."""
    return f"clients/client{client}"


class Replay:
    """One client's replay below `root`.

    At every `visit_every`th open, the client first reads the file that the next client holds; 0 means never.  `fsync`
    says whether Flush writes to the disk.
    """

    def __init__(self, root: Path, sharing: Sharing, visit_every: int, *, fsync: bool) -> None:
        self._root = os.fspath(root)
        self._sharing = sharing
        self._visit_every = visit_every if sharing.clients > 1 else 0
        self._fsync = fsync
        self._component = f"client{sharing.client}"
        self._paths: dict[str, str] = {}
        self._handles: dict[int, _Handle] = {}
        self._opens = 0
        self._bytes = 0
        self._buffer = memoryview(bytearray(_BUFFER))
        self._calls: dict[str, Callable[..., None]] = {
            "NTCreateX": self._create,
            "Close": self._close,
            "ReadX": self._read,
            "WriteX": self._write,
            "LockX": self._lock,
            "UnlockX": self._unlock,
            "Flush": self._flush,
            "Rename": self._rename,
            "Unlink": self._unlink,
            "Mkdir": self._mkdir,
            "Rmdir": self._rmdir,
            "Deltree": self._deltree,
            "FIND_FIRST": self._find,
            "QUERY_PATH_INFORMATION": self._query_path,
            "QUERY_FILE_INFORMATION": self._query_file,
            "QUERY_FS_INFORMATION": self._query_file_system,
            "SET_FILE_INFORMATION": self._set_file,
        }

    def run(self, operations: Sequence[Operation], seconds: float) -> Tally:
        """Replay the operations for this many seconds, repeatedly, but at least once to the end.  Raises Unexpected."""
        clock, dispatch = time.perf_counter, self._sharing.dispatch
        done = 0
        os.makedirs(f"{self._root}/{own_directory(self._sharing.client)}", exist_ok=True)
        began = now = clock()
        end = began + seconds
        while now < end:
            for operation in operations:
                self._do(operation)
                done += 1
                dispatch()
                now = clock()
                if now >= end and done >= len(operations):
                    break
            self._close_all()
        return Tally(self._bytes, done, clock() - began)

    def _do(self, operation: Operation) -> None:
        line, name, arguments, succeeds = operation
        try:
            self._calls[name](*arguments)
        except (OSError, KeyError) as error:
            if succeeds:
                raise Unexpected(f"line {line}, {name}: {error!r}") from error
            return
        if not succeeds:
            raise Unexpected(f"line {line}, {name} succeeded")

    def _path(self, path: str) -> str:
        """Return this client's path, relative to the root."""
        found = self._paths.get(path)
        if found is None:
            parts = (self._component if part == _PLACEHOLDER else part for part in path.split("/"))
            found = self._paths[path] = "/".join(parts)
        return found

    def _full(self, path: str) -> str:
        return f"{self._root}/{self._path(path)}"

    # The operations

    def _create(self, path: str, options: int, disposition: int, handle: int) -> None:
        path, full = self._path(path), self._full(path)
        if options & _DIRECTORY_FILE:
            if disposition != _OPEN:
                self._make_directory(path, full)
            self._handles[handle] = _Handle(os.open(full, os.O_RDONLY | os.O_DIRECTORY), None)
            return
        self._opens += 1
        if self._visit_every and self._opens % self._visit_every == 0:
            self._visit()
        flags = _FLAGS[disposition]
        made = bool(flags & os.O_CREAT) and (disposition == _CREATE or not os.path.lexists(full))
        try:
            fd = os.open(full, os.O_RDWR | os.O_CLOEXEC | flags, 0o644)
        except IsADirectoryError:
            self._handles[handle] = _Handle(os.open(full, os.O_RDONLY | os.O_DIRECTORY), None)
            return
        file = file_id(fd)
        self._handles[handle] = _Handle(fd, file)
        self._sharing.opened(file, path)
        if made:
            self._sharing.notify(path)

    def _close(self, handle: int) -> None:
        fd, file = self._handles.pop(handle)
        os.close(fd)
        if file is not None:
            self._sharing.closed(file)

    def _close_all(self) -> None:
        for handle in list(self._handles):
            self._close(handle)

    def _read(self, handle: int, offset: int, size: int, expected: int) -> None:
        got = os.preadv(self._handles[handle].fd, [self._buffer_of(size)], offset)
        self._bytes += got
        if got != expected:
            raise OSError(errno.EIO, f"{got} bytes were read instead of {expected}")

    def _write(self, handle: int, offset: int, size: int, expected: int) -> None:
        self._bytes += os.pwrite(self._handles[handle].fd, self._buffer_of(size), offset)

    def _buffer_of(self, size: int) -> memoryview:
        if size > len(self._buffer):
            self._buffer = memoryview(bytearray(size))
        return self._buffer[:size]

    def _lock(self, handle: int, offset: int, length: int) -> None:
        fcntl.lockf(self._handles[handle].fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, offset)

    def _unlock(self, handle: int, offset: int, length: int) -> None:
        fcntl.lockf(self._handles[handle].fd, fcntl.LOCK_UN, length, offset)

    def _flush(self, handle: int) -> None:
        fd = self._handles[handle].fd
        if self._fsync:
            os.fsync(fd)

    def _rename(self, old: str, new: str) -> None:
        os.rename(self._full(old), self._full(new))
        self._sharing.notify(self._path(old))
        self._sharing.notify(self._path(new))

    def _unlink(self, path: str, attributes: int) -> None:
        directory, _, pattern = self._path(path).rpartition("/")
        if "*" not in pattern and "?" not in pattern:
            os.unlink(self._full(path))
            self._sharing.notify(self._path(path))
            return
        for name in self._names(directory, pattern):
            with contextlib.suppress(IsADirectoryError):
                os.unlink(f"{self._root}/{directory}/{name}")
                self._sharing.notify(f"{directory}/{name}")

    def _mkdir(self, path: str) -> None:
        self._make_directory(self._path(path), self._full(path))

    def _make_directory(self, path: str, full: str) -> None:
        """Make a directory unless it exists.  Another client may have made it."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(full)
            self._sharing.notify(path)

    def _rmdir(self, path: str) -> None:
        os.rmdir(self._full(path))
        self._sharing.notify(self._path(path))

    def _deltree(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._full(path))
            self._sharing.notify(self._path(path))

    def _find(self, path: str, level: int, most: int, count: int) -> None:
        directory, _, pattern = self._path(path).rpartition("/")
        names = self._names(directory, pattern)
        if not names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        for name in names[:most]:
            with contextlib.suppress(FileNotFoundError):  # another client has removed it
                os.stat(f"{self._root}/{directory}/{name}")

    def _names(self, directory: str, pattern: str) -> list[str]:
        return fnmatch.filter(os.listdir(f"{self._root}/{directory}"), pattern)

    def _query_path(self, path: str, level: int) -> None:
        os.stat(self._full(path))

    def _query_file(self, handle: int, level: int) -> None:
        os.fstat(self._handles[handle].fd)

    def _query_file_system(self, level: int) -> None:
        os.statvfs(self._root)

    def _set_file(self, handle: int, level: int) -> None:
        os.utime(self._handles[handle].fd)

    # Conflicts

    def _visit(self) -> None:
        """Read the file that the next client most recently held exclusively, so that it must give that up."""
        sharing = self._sharing
        path = sharing.files.latest((sharing.client + 1) % sharing.clients)
        if path is None:
            return
        try:
            fd = os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # it has been removed
        try:
            file = file_id(fd)
            sharing.opened(file, path)
            os.preadv(fd, [self._buffer_of(_VISIT_BYTES)], 0)
            sharing.closed(file)
        finally:
            os.close(fd)
