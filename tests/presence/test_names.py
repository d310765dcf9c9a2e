# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Names, in names.tdb and in msgd's own file: both must behave alike."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgd import Config, Messaging, ServerID, TransportError, UnsafeDirectory
from msgd._registry import MESSAGING_MODULES
from msgd.presence import Presence, RendezvousDirectory
from msgd.presence.names import choose
from msgd.presence.names.base import Names
from msgd.presence.names.file import FileNames
from tests.support.harness import Channel, Child, Peer, Session, chosen_pids_reason, dead_pid, no_fd_leaks

KINDS: dict[str, type[Names]] = {"file": FileNames}
FILES = {"file": "names", "tdb": "names.tdb"}
if any(module.name == "tdb" for module in MESSAGING_MODULES):
    KINDS["tdb"] = choose.names_class()

PID_MAX = 1 << 22
"""No process has this pid, or a higher one."""
WRITERS = 8
ROUNDS = {"file": 40, "tdb": 250}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where names are kept in this test and in its children."""
    monkeypatch.setattr(choose, "names_class", lambda: KINDS[request.param])
    name: str = request.param
    return name


@pytest.fixture
def path(kind: str, config: Config) -> Path:
    """The file that holds the names."""
    return Path(config.lock_directory, FILES[kind])


@pytest.fixture
def messaging(kind: str, config: Config) -> Iterator[Messaging]:
    with Messaging(config) as messaging:
        yield messaging


@pytest.fixture
def peer(messaging: Messaging, config: Config) -> Iterator[Peer]:
    with Peer(config) as peer:
        yield peer


def add_name(session: Session, name: str) -> None:
    session.messaging.add_name(name)


def remove_name(session: Session, name: str) -> None:
    session.messaging.remove_name(name)


def lookup(session: Session, name: str) -> list[ServerID]:
    return session.messaging.lookup(name)


def close(session: Session) -> None:
    session.messaging.close()


def all_entries(messaging: Messaging) -> dict[str, list[str]]:
    """All entries in the file, whether their processes are dead or alive."""
    return {name: found for name, found in messaging._endpoint.presence._open_names().all_entries().items() if found}


def test_no_names(messaging: Messaging, path: Path) -> None:
    """Reading does not create the file."""
    assert messaging.lookup("printers") == []
    assert messaging.names() == {}
    messaging.remove_name("printers")
    assert messaging.clean_up() == []
    assert not path.exists()


def test_name_is_visible_to_others(messaging: Messaging, peer: Peer) -> None:
    messaging.add_name("printers")
    messaging.add_name("printers")
    assert messaging.lookup("printers") == [messaging.server_id]
    assert peer.call(lookup, "printers") == [messaging.server_id]
    peer.call(add_name, "printers")
    peer.call(add_name, "scanners")
    assert messaging.names() == {"printers": [messaging.server_id, peer.server_id], "scanners": [peer.server_id]}
    messaging.remove_name("printers")
    messaging.remove_name("scanners")
    assert messaging.lookup("printers") == messaging.lookup("scanners") == [peer.server_id]


def test_each_context_has_its_own_names(messaging: Messaging, config: Config, peer: Peer) -> None:
    with Messaging(config) as second:
        messaging.add_name("printers")
        second.add_name("printers")
        assert peer.call(lookup, "printers") == [messaging.server_id, second.server_id]
    assert peer.call(lookup, "printers") == [messaging.server_id]


def test_close_removes_the_names(messaging: Messaging, peer: Peer) -> None:
    peer.call(add_name, "printers")
    peer.call(close)
    assert all_entries(messaging) == {}


def test_lookup_prunes_dead_processes(messaging: Messaging, peer: Peer, config: Config) -> None:
    messaging.add_name("printers")
    peer.call(add_name, "printers")
    peer.call(add_name, "scanners")
    peer.kill()
    assert messaging.names() == {"printers": [messaging.server_id]}
    assert set(all_entries(messaging)) == {"printers", "scanners"}
    assert messaging.lookup("printers") == [messaging.server_id]
    assert messaging.lookup("scanners") == []
    assert all_entries(messaging) == {"printers": [str(messaging.server_id)]}


def test_clean_up_prunes_dead_processes(messaging: Messaging, peer: Peer, config: Config) -> None:
    """Even if their files have been removed already, for example by Samba's clean-up."""
    peer.call(add_name, "printers")
    with Peer(config) as other:
        other.call(add_name, "scanners")
        peer.kill()
        for directory in ("msg.lock", "msg.sock"):
            Path(config.lock_directory, directory, str(peer.pid)).unlink()
        assert messaging.clean_up() == []
        assert all_entries(messaging) == {"scanners": [str(other.server_id)]}


def test_name_does_not_pass_to_a_process_with_the_same_pid(messaging: Messaging, peer: Peer, config: Config) -> None:
    if reason := chosen_pids_reason():
        pytest.skip(reason)
    peer.call(add_name, "printers")
    peer.kill()
    with Peer(config, pid=peer.pid) as successor:
        assert messaging.names() == {}
        assert messaging.lookup("printers") == []
        successor.call(add_name, "printers")
        assert messaging.lookup("printers") == [successor.server_id]


def in_child(messaging: Messaging, channel: Channel) -> None:
    messaging.reinit()
    messaging.remove_name("printers")  # the child does not have it
    channel.send(messaging.lookup("printers"))
    messaging.add_name("scanners")
    channel.send(messaging.server_id)
    channel.recv()


def test_fork(messaging: Messaging, peer: Peer) -> None:
    """A child gets its own identity and no names.  Closing what it inherited drops nobody's locks."""
    messaging.add_name("printers")
    with Child(lambda channel: in_child(messaging, channel)) as child:
        assert child.hear() == [messaging.server_id]
        child_id = child.hear()
        assert messaging.lookup("scanners") == [child_id]
    assert messaging.names() == peer.call(names) == {"printers": [messaging.server_id]}
    with Peer(messaging.config) as newcomer:
        newcomer.call(add_name, "printers")
        assert messaging.lookup("printers") == [messaging.server_id, newcomer.server_id]


def names(session: Session) -> dict[str, list[ServerID]]:
    return session.messaging.names()


def test_many_dead_entries_are_cleaned_at_once(messaging: Messaging) -> None:
    """The lock over all names is held only as long as it takes to go through the entries once."""
    store = messaging._endpoint.presence._open_names()
    entries = [f"{PID_MAX + number}/{number + 1}" for number in range(100_000)]
    store._change("printers", lambda before: [*before, *entries], create=True)
    messaging.add_name("printers")
    before = time.monotonic()
    store.prune("printers", store.entries("printers"), lambda server_id: server_id.pid < PID_MAX)
    assert time.monotonic() - before < 5
    assert all_entries(messaging) == {"printers": [str(messaging.server_id)]}


@pytest.mark.parametrize(
    "entry", ["1:77/5", "rubbish", "\N{SNOWMAN}", "77/99999999999999999999", "0/5", "99999999999/5"]
)
def test_entries_that_cannot_be_judged_stay(messaging: Messaging, entry: str) -> None:
    """Entries of another node, or in a format that a later version may write."""
    store = messaging._endpoint.presence._open_names()
    store._change("printers", lambda entries: [*entries, entry], create=True)
    assert messaging.lookup("printers") == []
    assert messaging.clean_up() == []
    messaging.add_name("printers")
    assert messaging.names() == {"printers": [messaging.server_id]}
    assert all_entries(messaging) == {"printers": [entry, str(messaging.server_id)]}


@pytest.mark.parametrize("name", ["", "\0", "a\0b", "a\nb", "\x1b", "x" * 256, "\N{SNOWMAN}" * 86, "\udcff"])
def test_invalid_names(messaging: Messaging, name: str, path: Path) -> None:
    with pytest.raises(ValueError, match="is not a name: a name is 1 to 255 bytes"):
        messaging.add_name(name)
    assert not path.exists()


@pytest.mark.parametrize("name", ["a b", "\N{SNOWMAN}", "x" * 255, "1:2", " "])
def test_valid_names(messaging: Messaging, name: str, peer: Peer) -> None:
    messaging.add_name(name)
    assert peer.call(lookup, name) == [messaging.server_id]


def change_names(session: Session, rounds: int) -> None:
    """Add and remove names that other processes change at the same time; have both names at the end."""
    for _ in range(rounds):
        session.messaging.add_name("odd")
        session.messaging.add_name("even")
        session.messaging.lookup("odd")
        session.messaging.remove_name("odd")
        session.messaging.clean_up()
    session.messaging.add_name("odd")


def test_many_writers(messaging: Messaging, config: Config, kind: str) -> None:
    """No entry is lost or doubled while many processes add, remove, look up and clean up at the same time."""
    writers = [Peer(config) for _ in range(WRITERS)]
    try:
        for writer in writers:
            writer.begin(change_names, ROUNDS[kind])
        for writer in writers:
            assert writer.hear() is None
        everybody = sorted(writer.server_id for writer in writers)
        assert {name: sorted(found) for name, found in messaging.names().items()} == {
            "odd": everybody,
            "even": everybody,
        }
    finally:
        for writer in writers:
            writer.kill()


def test_killed_writers(messaging: Messaging, config: Config) -> None:
    """A killed writer leaves the names intact, and its lock blocks nobody."""
    for _ in range(10):
        with Peer(config) as writer:
            writer.begin(change_names, 1_000_000)
            writer.kill()
        messaging.add_name("printers")
        assert messaging.lookup("printers") == [messaging.server_id]
        messaging.remove_name("printers")
        messaging.clean_up()
        assert all_entries(messaging) == {}


def test_close_leaves_no_descriptor(messaging: Messaging, config: Config) -> None:
    messaging.close()
    with no_fd_leaks():
        with Messaging(config) as again:
            again.add_name("printers")
            again.lookup("printers")
            again.clean_up()
        with RendezvousDirectory(config) as directory:
            directory.names()


# Reading from outside


def test_reading_from_outside(messaging: Messaging, peer: Peer, config: Config) -> None:
    peer.call(add_name, "printers")
    with RendezvousDirectory(config) as directory:
        assert directory.names() == {"printers": [peer.server_id]}


def read_repeatedly(config: Config, number: int, channel: Channel) -> None:
    """In a child: read the names many times; reports the results that are wrong."""
    wrong = []
    with RendezvousDirectory(config) as directory:
        channel.send("ready")
        for _ in range(number):
            seen = directory.names()
            if "even" not in seen or len(set(seen["even"])) != len(seen["even"]):
                wrong.append(seen)
    channel.send(wrong)


def test_reading_from_outside_while_others_write(messaging: Messaging, config: Config, peer: Peer) -> None:
    messaging.add_name("even")
    with Child(lambda channel: read_repeatedly(config, 1000, channel)) as reader:
        assert reader.hear() == "ready"
        peer.begin(change_names, 300)
        assert reader.hear() == []
        assert peer.hear() is None


def test_reading_from_outside_drops_no_lock(messaging: Messaging, config: Config, path: Path) -> None:
    """Neither the lock on the lock file nor, with tdb, the lock that keeps newcomers from emptying names.tdb."""
    messaging.add_name("printers")
    with RendezvousDirectory(config) as directory:
        directory.names()
        list(directory.entries())
        list(directory.processes())
    with Peer(config) as newcomer:
        newcomer.call(add_name, "scanners")
        assert newcomer.call(lookup, "printers") == [messaging.server_id]
        assert messaging.names() == {"printers": [messaging.server_id], "scanners": [newcomer.server_id]}


# The file


def test_modes(kind: str, config: Config, path: Path) -> None:
    before = os.umask(0o077)
    try:
        with Messaging(config) as messaging:
            messaging.add_name("printers")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == {"tdb": 0o660, "file": 0o644}[kind]


def test_link_in_place_of_the_file(messaging: Messaging, path: Path) -> None:
    """The link is not followed."""
    target = path.with_name("target")
    target.write_text("not to be touched")
    path.symlink_to(target)
    for use in (lambda: messaging.lookup("printers"), messaging.names, messaging.clean_up):
        with no_fd_leaks(), pytest.raises((UnsafeDirectory, TransportError), match=str(path)):
            use()
    with RendezvousDirectory(messaging.config) as directory, pytest.raises(TransportError, match=str(path)):
        directory.names()
    assert target.read_text() == "not to be touched"


def test_link_in_place_of_the_file_does_not_stop_the_rest_of_a_clean_up(messaging: Messaging, path: Path) -> None:
    pid = dead_pid()
    lock_file = Path(messaging.config.lock_directory, "msg.lock", str(pid))
    lock_file.write_text("1\n")
    path.symlink_to("nowhere")
    with pytest.raises((UnsafeDirectory, TransportError)):
        messaging.clean_up()
    assert not lock_file.exists()


def test_reading_from_outside_without_the_right_to_write(kind: str, config: Config) -> None:
    """It works if the mode of the file allows it; otherwise the error is one line."""
    with Messaging(config) as messaging:
        messaging.add_name("printers")
        Path(config.lock_directory).parent.chmod(0o755)

        def as_nobody(channel: Channel) -> None:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            with RendezvousDirectory(config) as directory:
                try:
                    channel.send(directory.names())
                except TransportError as error:
                    channel.send(str(error))

        with Child(as_nobody) as child:
            heard = child.hear()
        if kind == "file" or os.geteuid() != 0:
            assert heard == {"printers": [messaging.server_id]}
        else:
            assert heard == f"{config.lock_directory}/names.tdb: Permission denied"


def test_names_without_messaging(kind: str, config: Config) -> None:
    """A Presence alone, used in the order in which Messaging does: names first, lock file last."""
    here = Presence(config)
    here.announce()
    server_id = ServerID(here.pid, unique_id=here.unique_id)
    here.add_name("printers", server_id)
    here.remove_name("printers", server_id)
    assert here.names() == {}
    here.close()
    assert os.listdir(Path(config.lock_directory, "msg.lock")) == []
