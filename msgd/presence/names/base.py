"""Names: how a process is found by what it does instead of by its pid.

A name belongs to any number of processes, each as the text of its server id, `pid[.task]/unique`.  Where the messaging
module tdb is compiled in, names are in names.tdb, which Samba shares (names_tdb.py); else in a file of msgd's own
(names_file.py).  All processes of a directory have to be built alike in this.

Why pruning never takes a living process's name.  A process adds its name while it holds its lock file, and takes it
away before it lets go of it; so an entry whose process is not found there belongs to a dead one.  Between that look
and the removal nothing can change: unique ids are not used twice, so the entry that is removed, to the letter, can
never again be anybody's.  An entry that cannot be read, or that is of another node, is not to be judged here: it stays.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection

from msgd.wire.server_id import NONCLUSTER_VNN, ServerID

NAME_MAX = 255
"""Bytes of a name in UTF-8."""

Entries = list[str]
"""The texts of the server ids that have a name, in the order in which they took it."""


class Names(abc.ABC):
    """The names of one rendezvous directory, as its processes read and write them.

    Everything here raises TransportError if the system refuses or the file is damaged.
    """

    def __init__(self, directory_fd: int, directory: str) -> None:
        self._directory_fd = directory_fd
        self._directory = directory

    @staticmethod
    @abc.abstractmethod
    def read(directory_fd: int, directory: str) -> dict[str, Entries]:
        """All names, for one who only looks: nothing is made, locked or changed."""

    @abc.abstractmethod
    def entries(self, name: str) -> Entries:
        """The entries of a name; none if nobody has it."""

    @abc.abstractmethod
    def all_entries(self) -> dict[str, Entries]:
        """The entries of all names."""

    @abc.abstractmethod
    def _change(self, name: str, change: Callable[[Entries], Entries], *, create: bool = False) -> None:
        """Replace the entries of a name by what `change` makes of them, in one step.

        Where no name has ever been added there is nothing to change, unless with `create`.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the file; in a forked child, of the parent's.  A second call does nothing."""

    def add(self, name: str, server_id: ServerID) -> None:
        """Give the name to one more; having it already does no harm.  ValueError if it is no name."""
        check_name(name)
        text = str(server_id)
        self._change(name, lambda entries: entries if text in entries else [*entries, text], create=True)

    def discard(self, name: str, unwanted: Collection[str]) -> None:
        """Take the name from these entries, as far as they have it."""
        self._change(name, lambda entries: [text for text in entries if text not in unwanted])


def check_name(name: str) -> None:
    """Raise ValueError if `name` cannot be one."""
    if not name.isprintable() or not 0 < len(name.encode()) <= NAME_MAX:
        raise ValueError(f"{name!r} is not a name: 1 to {NAME_MAX} bytes of printable characters are")


def read_entry(text: str) -> ServerID | None:
    """The process of this node that an entry names; None if it is another node's, or nobody's."""
    try:
        server_id = ServerID.parse(text)
    except ValueError:
        return None
    return server_id if server_id.vnn == NONCLUSTER_VNN else None
