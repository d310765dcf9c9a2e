# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Choosing where the names of a directory are kept: in names.tdb, or in msgd's own file `names`.

A directory has one format of names, whatever the builds and environments of its processes are.  Otherwise each half of
them would see its own names only.

Rule 1. If names.tdb is there, names are in it.  Samba and every build with tdb use it.  A process without tdb cannot,
        and says so.
Rule 2. Otherwise, if `names` holds names, they are in that file, for processes with tdb too.
Rule 3. Otherwise whoever adds the first name decides: names.tdb in a build with tdb, or else `names`.
Rule 4. names.tdb may appear beside `names` at any time: Samba creates it without looking.  From then on it decides.  A
        process that opens it moves what `names` holds into it, each name under the lock of `names`'s writers.

Two processes may add the first name at the same time, each in its own format.  So both look for the other file after
they have added a name, and at least one of them finds it: the process with tdb moves the names of the other one, or
the process without tdb takes its name back and says so.
"""

from __future__ import annotations

import os

from msgd._registry import LEFT_OUT, MESSAGING_MODULES
from msgd.errors import BackendUnavailable
from msgd.presence.names.base import Entries, Names
from msgd.presence.names.file import FILE_NAME, FileNames

TDB_FILE_NAME = "names.tdb"


def names_class() -> type[Names]:
    """The class that keeps names in this build, where a directory has none yet.

    Raises BackendUnavailable if tdb is compiled in but its Python module is missing.
    """
    if not any(module.name == "tdb" for module in MESSAGING_MODULES):
        return FileNames
    try:
        from msgd.presence.names.tdb import TdbNames  # imports a module that only builds with tdb need
    except ImportError as error:
        raise BackendUnavailable(f"names.tdb: {error}; install it or configure without tdb") from error
    return TdbNames


def open_names(directory_fd: int, directory: str, opened: Names | None = None) -> Names:
    """The names of a directory, for a member of it.  `opened` is what an earlier call has returned.

    Raises BackendUnavailable, TransportError.
    """
    wanted = _class_for(directory_fd, directory)
    if opened is None or type(opened) is not wanted:
        if opened is not None:
            opened.close()
        opened = wanted(directory_fd, directory)
    try:
        if not isinstance(opened, FileNames) and _holds_names(directory_fd):
            _move(FileNames(directory_fd, directory), opened)
    except BaseException:
        opened.close()
        raise
    return opened


def read_names(directory_fd: int, directory: str) -> dict[str, Entries]:
    """All names of a directory, for a process that is not a member.  Raises BackendUnavailable, TransportError."""
    names = _class_for(directory_fd, directory).read(directory_fd, directory)
    for name, entries in FileNames.read(directory_fd, directory).items():  # they may not have been moved yet
        names[name] = list(dict.fromkeys([*names.get(name, []), *entries]))
    return names


def _class_for(directory_fd: int, directory: str) -> type[Names]:
    in_this_build = names_class()
    if _exists(TDB_FILE_NAME, directory_fd):
        if in_this_build is FileNames:
            reason = LEFT_OUT.get("tdb", "it is built without the messaging module tdb")
            raise BackendUnavailable(
                f"{directory}/{TDB_FILE_NAME}: the names of this directory are kept there, and this msgd cannot read"
                f" them: {reason}; install what is missing, or use another lock directory"
            )
        return in_this_build
    return FileNames if _holds_names(directory_fd) else in_this_build


def _move(file: Names, into: Names) -> None:
    """Move all names from the file (Rule 4)."""
    for name in file.all_entries():
        file.move(name, into)


def _exists(name: str, directory_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _holds_names(directory_fd: int) -> bool:
    try:
        return os.stat(FILE_NAME, dir_fd=directory_fd, follow_symlinks=False).st_size > 0
    except FileNotFoundError:
        return False
