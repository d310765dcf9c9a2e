# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Names: how to find a process by what it does rather than by its pid.

Any number of processes can have the same name.  Each is an entry: the text of its server id, `pid[.task]/unique`.
tdb.py keeps names in names.tdb, which Samba shares; file.py keeps them in a file of msgd's own.  choose.py selects the
one that the directory uses.

Why pruning never takes a living process's name.

Rule 1. A process adds a name only while it holds its lock file, and removes it before it releases that file.
Rule 2. Pruning reads the entries first, then checks whether each process is alive, and then removes the entries of
    those that are not.
Rule 3. A removal removes exactly the text that was read, and nothing else.
Rule 4. A unique id is never used twice.
Rule 5. An entry that cannot be parsed, or belongs to another node of a cluster, cannot be judged here.  It stays.

Proof.  An entry that was read belongs to a process that held its lock file when it added it.  If that process is not
alive when it is checked, it has died or has released its lock file, so it will never add the entry again (Rule 1).
Neither will another process, because the entry contains the unique id (Rule 4).  So between the check and the removal
the same text cannot become a living process's entry, and by Rule 3 the removal touches no other.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterable

from msgd.wire.server_id import NONCLUSTER_VNN, ServerID

NAME_MAX = 255
"""The most bytes of a name, in UTF-8."""

Entries = list[str]
"""The server ids, as text, that have a name, in the order in which they took it."""

IsAlive = Callable[[ServerID], bool]


class Names(abc.ABC):
    """The names of one rendezvous directory, as its members read and write them.

    Every method raises TransportError if the system refuses or the file is damaged.
    """

    def __init__(self, directory_fd: int, directory: str) -> None:
        self._directory_fd = directory_fd
        self._directory = directory

    @staticmethod
    @abc.abstractmethod
    def read(directory_fd: int, directory: str) -> dict[str, Entries]:
        """All names, for a process that is not a member: creates, locks and changes nothing."""

    @abc.abstractmethod
    def entries(self, name: str) -> Entries:
        """The entries of a name; an empty list if nobody has it."""

    @abc.abstractmethod
    def all_entries(self) -> dict[str, Entries]:
        """The entries of all names."""

    @abc.abstractmethod
    def _change(self, name: str, change: Callable[[Entries], Entries], *, create: bool = False) -> None:
        """Replace the entries of a name with what `change` returns for them, atomically.

        If no name has ever been added to the directory, this does nothing unless `create` is true.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close the file; in a forked child, the parent's.  A second call does nothing."""

    def add(self, name: str, server_id: ServerID) -> None:
        """Add an entry to the name, unless it is there already.  Raises ValueError if `name` is not a name."""
        check_name(name)
        text = str(server_id)
        self._change(name, lambda entries: entries if text in entries else [*entries, text], create=True)

    def discard(self, name: str, unwanted: Collection[str]) -> None:
        """Remove these entries from the name; those that it does not have are ignored."""
        self._change(name, lambda entries: [text for text in entries if text not in unwanted])

    def move(self, name: str, into: Names) -> None:
        """Move the entries of a name to other names.  Nobody changes them here meanwhile."""

        def moved(entries: Entries) -> Entries:
            into._change(name, lambda others: list(dict.fromkeys([*others, *entries])), create=True)
            return []

        self._change(name, moved)

    def prune(self, name: str, entries: Entries, is_alive: IsAlive, vnn: int = NONCLUSTER_VNN) -> None:
        """Remove those of `entries`, which were read before this call, whose process is dead (Rules 2, 5).

        `vnn`: the number of this node.
        """
        dead = {text for text in entries if (server_id := read_entry(text, vnn)) and not is_alive(server_id)}
        if dead:
            self.discard(name, dead)


def living(entries: Iterable[str], is_alive: IsAlive, vnn: int = NONCLUSTER_VNN) -> list[ServerID]:
    """The living processes among the entries; `vnn`: the number of this node."""
    return [server_id for text in entries if (server_id := read_entry(text, vnn)) and is_alive(server_id)]


def living_names(
    all_entries: dict[str, Entries], is_alive: IsAlive, vnn: int = NONCLUSTER_VNN
) -> dict[str, list[ServerID]]:
    """The names that living processes have, each with those processes; `vnn`: the number of this node."""
    found = {name: living(entries, is_alive, vnn) for name, entries in all_entries.items()}
    return {name: processes for name, processes in found.items() if processes}


def check_name(name: str) -> None:
    """Raise ValueError if `name` cannot be a name."""
    if not name.isprintable() or not 0 < len(name.encode()) <= NAME_MAX:
        raise ValueError(f"{name!r} is not a name: a name is 1 to {NAME_MAX} bytes of printable characters")


def read_entry(text: str, vnn: int) -> ServerID | None:
    """The process in an entry; None if the entry cannot be parsed or belongs to another node (Rule 5).

    `vnn`: the number of this node, which the process is given.  Samba writes it into its entries, and msgd does not:
    both mean a process of this node, and an entry stays the same text if ctdbd comes later than msgd.
    """
    try:
        server_id = ServerID.parse(text)
    except ValueError:
        return None
    return server_id._replace(vnn=vnn) if server_id.vnn in (NONCLUSTER_VNN, vnn) else None
