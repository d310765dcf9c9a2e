# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Names in a file of msgd's own, for builds without tdb.

`names` in the lock directory has one line for each entry: the server id, a space, the name.

Rule 1. The file is only ever replaced as a whole, by rename().  A reader needs no lock and sees one complete version.
Rule 2. A writer holds the private lock of the file from reading the old version until the rename, so no change is lost
    (private_lock.py).

A writer that is killed leaves the old version, complete, and possibly a `names.new`, which the next writer overwrites.
The kernel drops its lock.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from msgd.errors import TransportError
from msgd.presence.names.base import Entries, Names
from msgd.presence.private_lock import NAMES_FILE, PrivateLock

FILE_NAME = "names"
_NEW_NAME = "names.new"
_MODE = 0o644
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FileNames(Names):
    """Names in the file `names`."""

    @staticmethod
    def read(directory_fd: int, directory: str) -> dict[str, Entries]:
        names: dict[str, Entries] = {}
        with _errors(directory):
            try:
                fd = os.open(FILE_NAME, os.O_RDONLY | _OPEN, dir_fd=directory_fd)
            except FileNotFoundError:
                return names
            with open(fd, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
                for line in file:
                    text, _, name = line.removesuffix("\n").partition(" ")
                    names.setdefault(name, []).append(text)
        return names

    def entries(self, name: str) -> Entries:
        return self.all_entries().get(name, [])

    def all_entries(self) -> dict[str, Entries]:
        return self.read(self._directory_fd, self._directory)

    def _change(self, name: str, change: Callable[[Entries], Entries], *, create: bool = False) -> None:
        with _errors(self._directory), PrivateLock(self._directory_fd, self._directory).held(NAMES_FILE):
            names = self.all_entries()
            before = names.pop(name, [])
            names[name] = change(before)
            if names[name] != before:
                self._replace(names)

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def _replace(self, names: dict[str, Entries]) -> None:
        text = "".join(f"{text} {name}\n" for name, entries in names.items() for text in entries)
        with open(self._open_to_write(_NEW_NAME), "wb") as file:
            os.fchmod(file.fileno(), _MODE)
            file.write(text.encode("utf-8", "surrogateescape"))
            file.truncate()
        os.replace(_NEW_NAME, FILE_NAME, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)

    def _open_to_write(self, name: str) -> int:
        return os.open(name, os.O_RDWR | os.O_CREAT | _OPEN, _MODE, dir_fd=self._directory_fd)


@contextlib.contextmanager
def _errors(directory: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TransportError(f"{directory}/{FILE_NAME}: {error.strerror}") from error
