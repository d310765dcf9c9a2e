# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The table of open files that the connection processes share: a tdb, which they read and change under its lock.

A file is identified by device and inode, not by name.  Its record has a line for each open: the client's number, and 1
if the client holds the file exclusively because it was the first to open it, as an SMB client with an oplock does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Open(NamedTuple):
    """One open of a file: the client, and whether it holds the file exclusively."""

    client: int
    exclusive: bool


class OpenFiles:
    """One process's handle of the table.  It needs python3-tdb."""

    def __init__(self, path: Path) -> None:
        import tdb

        self._tdb = tdb.Tdb(os.fspath(path), 0, tdb.DEFAULT, os.O_RDWR | os.O_CREAT, 0o600)

    def add(self, file: bytes, path: str, client: int) -> list[int]:
        """Record an open, and return no clients.

        If other clients hold the file exclusively, return their numbers and record nothing.
        """
        with self._locked():
            opens = self._get(file)
            holders = [one.client for one in opens if one.exclusive and one.client != client]
            if not holders:
                self._put(file, [*opens, Open(client, not opens)])
                if not opens:
                    self._tdb.store(_latest_key(client), os.fsencode(path))
        return holders

    def remove(self, file: bytes, client: int) -> None:
        """Remove one of the client's opens."""
        with self._locked():
            opens = self._get(file)
            for open_ in opens:
                if open_.client == client:
                    opens.remove(open_)
                    break
            self._put(file, opens)

    def share(self, file: bytes, client: int) -> None:
        """Record that the client no longer holds the file exclusively."""
        with self._locked():
            self._put(file, [one._replace(exclusive=False) if one.client == client else one for one in self._get(file)])

    def latest(self, client: int) -> str | None:
        """The path of the file that the client most recently held exclusively.  It may have been closed since."""
        path = self._tdb.get(_latest_key(client))
        return None if path is None else os.fsdecode(path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._tdb.lock_all()
        try:
            yield
        finally:
            self._tdb.unlock_all()

    def _get(self, file: bytes) -> list[Open]:
        record: bytes = self._tdb.get(_key(file)) or b""
        return [Open(int(client), exclusive == b"1") for client, exclusive in map(bytes.split, record.splitlines())]

    def _put(self, file: bytes, opens: list[Open]) -> None:
        if opens:
            self._tdb.store(_key(file), b"".join(b"%d %d\n" % (one.client, one.exclusive) for one in opens))
        elif self._tdb.get(_key(file)) is not None:
            self._tdb.delete(_key(file))


def file_id(fd: int) -> bytes:
    """The identity of an open file: its device and inode."""
    status = os.fstat(fd)
    return b"%d:%d" % (status.st_dev, status.st_ino)


def _key(file: bytes) -> bytes:
    return b"file/" + file


def _latest_key(client: int) -> bytes:
    return b"latest/%d" % client
