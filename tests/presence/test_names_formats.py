# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Processes with and without tdb in one directory: its names are in one format, or it is said why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from msgd import BackendUnavailable, Config, Messaging, RendezvousDirectory, ServerID
from msgd._registry import MESSAGING_MODULES
from msgd.presence.names import choose
from msgd.presence.names.base import Names
from msgd.presence.names.file import FileNames
from tests.support.harness import Peer, Session, dead_pid

pytestmark = pytest.mark.skipif(
    all(module.name != "tdb" for module in MESSAGING_MODULES), reason="this build has no tdb"
)

REFUSED = "names.tdb: the names of this directory are kept there, and this msgd cannot read them"


def become_a_process_without_tdb(session: Session) -> None:
    choose.names_class = lambda: FileNames  # of this process only


def add_name(session: Session, name: str) -> str:
    """What becomes of it: "added", or the error."""
    try:
        session.messaging.add_name(name)
    except BackendUnavailable as error:
        return str(error)
    return "added"


def lookup(session: Session, name: str) -> list[ServerID]:
    return session.messaging.lookup(name)


def remove_name(session: Session, name: str) -> None:
    session.messaging.remove_name(name)


def close(session: Session) -> None:
    session.messaging.close()


@pytest.fixture
def messaging(config: Config) -> Iterator[Messaging]:
    """A process with tdb."""
    with Messaging(config) as messaging:
        yield messaging


@pytest.fixture
def plain(config: Config) -> Iterator[Peer]:
    """A process without tdb."""
    with Peer(config) as peer:
        peer.call(become_a_process_without_tdb)
        yield peer


def files(config: Config) -> set[str]:
    """The files that hold names."""
    directory = Path(config.lock_directory)
    return {
        name for name in ("names", "names.tdb") if (directory / name).exists() and (directory / name).stat().st_size
    }


def test_a_process_without_tdb_says_so_where_names_tdb_is(messaging: Messaging, plain: Peer, config: Config) -> None:
    messaging.add_name("printers")
    said = plain.call(add_name, "scanners")
    assert REFUSED in said
    assert said.startswith(config.lock_directory)
    assert files(config) == {"names.tdb"}
    assert messaging.names() == {"printers": [messaging.server_id]}


def test_from_outside_too(messaging: Messaging, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    messaging.add_name("printers")
    monkeypatch.setattr(choose, "names_class", lambda: FileNames)
    with RendezvousDirectory(config) as directory, pytest.raises(BackendUnavailable, match=REFUSED):
        directory.names()


def test_who_comes_first_decides(plain: Peer, messaging: Messaging, config: Config) -> None:
    assert plain.call(add_name, "printers") == "added"
    messaging.add_name("printers")
    assert files(config) == {"names"}
    assert plain.call(lookup, "printers") == messaging.lookup("printers") == [plain.server_id, messaging.server_id]
    with RendezvousDirectory(config) as directory:
        assert directory.names() == {"printers": [plain.server_id]}  # a process does not see its own lock


def test_a_file_whose_names_are_all_gone_decides_nothing(plain: Peer, messaging: Messaging, config: Config) -> None:
    Path(config.lock_directory, "names").write_text(f"{dead_pid()}/5 printers\n")
    assert messaging.clean_up() == []
    messaging.add_name("printers")
    assert files(config) == {"names.tdb"}


def test_names_move_into_a_names_tdb_that_appears(plain: Peer, messaging: Messaging, config: Config) -> None:
    """As Samba makes one, without looking."""
    assert plain.call(add_name, "printers") == "added"
    messaging.add_name("scanners")
    with Peer(config) as samba:
        samba.call(create_names_tdb)
        others = {"printers": [plain.server_id], "samba": [samba.server_id]}
        with RendezvousDirectory(config) as directory:
            assert directory.names() == others
        assert messaging.names() == others | {"scanners": [messaging.server_id]}
        assert files(config) == {"names.tdb"}
        messaging.remove_name("scanners")
        assert messaging.names() == others
    assert REFUSED in plain.call(add_name, "printers")
    plain.call(close)
    assert messaging.names() == {}


_kept: list[Names] = []


def create_names_tdb(session: Session) -> None:
    presence = session.messaging._endpoint.presence
    names = choose.names_class()(presence.directory_fd, presence.directory)
    names.add("samba", session.messaging.server_id)
    _kept.append(names)


def test_two_that_come_first_at_once(config: Config, plain: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """names.tdb is created between the look of a process without tdb and its write."""
    with Messaging(config) as messaging, Messaging(config) as other:
        monkeypatch.setattr(FileNames, "add", add_behind(messaging, choose.names_class()))
        monkeypatch.setattr(choose, "names_class", lambda: FileNames)
        with pytest.raises(BackendUnavailable, match=REFUSED):
            other.add_name("printers")
        assert files(config) == {"names.tdb"}


def test_the_other_way_round(
    config: Config, plain: Peer, messaging: Messaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without tdb writes between the look of one with tdb and the creation of names.tdb."""
    tdb_names = choose.names_class()
    add = tdb_names.add

    def late(self: Names, name: str, server_id: ServerID) -> None:
        assert plain.call(add_name, "scanners") == "added"
        add(self, name, server_id)

    monkeypatch.setattr(tdb_names, "add", late)
    messaging.add_name("printers")
    monkeypatch.undo()
    assert files(config) == {"names.tdb"}
    assert messaging.names() == {"printers": [messaging.server_id], "scanners": [plain.server_id]}


def add_behind(messaging: Messaging, tdb_names: type[Names]) -> object:
    add = FileNames.add

    def late(self: Names, name: str, server_id: ServerID) -> None:
        presence = messaging._endpoint.presence
        names = tdb_names(presence.directory_fd, presence.directory)
        names.add("samba", messaging.server_id)
        names.close()
        add(self, name, server_id)

    return late
