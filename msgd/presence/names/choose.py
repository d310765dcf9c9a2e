# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Choosing where names are kept: in names.tdb if the messaging module tdb is compiled in, else in msgd's own file."""

from __future__ import annotations

from msgd._registry import MESSAGING_MODULES
from msgd.errors import BackendUnavailable
from msgd.presence.names.base import Entries, Names
from msgd.presence.names.file import FileNames


def names_class() -> type[Names]:
    """The class that keeps names in this build.

    Raises BackendUnavailable if tdb is compiled in but its Python module is missing.
    """
    if not any(module.name == "tdb" for module in MESSAGING_MODULES):
        return FileNames
    try:
        from msgd.presence.names.tdb import TdbNames  # imports a module that only builds with tdb need
    except ImportError as error:
        raise BackendUnavailable(f"names.tdb: {error}; install it or configure without tdb") from error
    return TdbNames


def open_names(directory_fd: int, directory: str) -> Names:
    """The names of a directory, for a member of it.  Raises BackendUnavailable."""
    return names_class()(directory_fd, directory)


def read_names(directory_fd: int, directory: str) -> dict[str, Entries]:
    """All names of a directory, for a process that is not a member.  Raises BackendUnavailable, TransportError."""
    return names_class().read(directory_fd, directory)
