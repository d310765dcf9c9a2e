# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The owner replaces, removes, overwrites or cuts off messages.tdb while processes use it: they go on, in one file."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from msgd import Config
from msgd.backends.tdb import moving
from msgd.backends.tdb.destination import Destination
from msgd.backends.tdb.messages_file import Opened
from msgd.backends.tdb.words import FILE
from msgd.presence.lock_text import TEXT_MAX
from msgd.wire.tdb_record import queue_key
from tests.backends.conftest import MakeConfig, StartPeer
from tests.backends.tdb.conftest import MODES
from tests.backends.tdb.test_crash import backend, begin_exchange, end_exchange, log
from tests.support.harness import TEXT, Child, Peer, Session, close, send_many, take, take_data, wait_until_asleep

__all__ = ["log"]

LONG = b"." * 5000
"""Data that the compiled sender leaves to its twin, which looks."""

pytestmark = pytest.mark.usefixtures("always_due")


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peers, which are forked, look before each use of the file."""
    monkeypatch.setattr(moving, "INTERVAL", -1.0)


def path_of(config: Config) -> Path:
    return Path(config.lock_directory) / "messages.tdb"


def damage(config: Config, do: Callable[[Path], None]) -> None:
    """Do it in a process of its own: closing the file here would drop the locks of a peer of this process."""
    with Child(lambda _: do(path_of(config))) as child:
        assert child.wait() == 0


def inode(session: Session) -> int:
    return backend(session.messaging)._file.inode[1]


def own_value(session: Session) -> bytes | None:
    one = backend(session.messaging)
    value: bytes | None = one._file.tdb.get(queue_key(one.presence.pid))
    return value


def numbered(prefix: bytes, number: int) -> list[bytes]:
    return [prefix + b"%d" % one for one in range(number)]


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    """Put something else into its place."""
    other = path.with_name("other")
    other.write_bytes(b"no tdb")
    other.rename(path)


@pytest.mark.parametrize("how", [remove, replace])
@pytest.mark.parametrize("mode", MODES)
def test_removed_or_replaced(
    log: Path, make_config: MakeConfig, start: StartPeer, mode: str, how: Callable[[Path], None]
) -> None:
    """Nothing is lost, not even in segments; what comes from one sender stays in order, and all use one file."""
    config = make_config(**MODES[mode])
    receiver, sender, other = start(config), start(config), start(config)
    sender.call(send_many, receiver.server_id, numbered(b"a", 3000))
    other.call(send_many, receiver.server_id, numbered(b"b", 3000))
    damage(config, how)
    newcomer = start(config)
    newcomer.call(send_many, receiver.server_id, numbered(b"n", 1000))
    sender.call(send_many, receiver.server_id, [b"a3000", LONG])
    got = receiver.call(take, 3000 + 3000 + 1000 + 2)
    for peer, texts in (
        (sender, [*numbered(b"a", 3001), LONG]),
        (other, numbered(b"b", 3000)),
        (newcomer, numbered(b"n", 1000)),
    ):
        assert [one.data for one in got if one.src == peer.server_id] == texts
    other.call(send_many, receiver.server_id, [b"b3000"])
    assert receiver.call(take_data, 1) == [b"b3000"]
    receiver.call(send_many, sender.server_id, [b"back"])
    assert sender.call(take_data, 1) == [b"back"]
    assert {peer.call(inode) for peer in (receiver, sender, other, newcomer)} == {path_of(config).stat().st_ino}
    assert log.read_text().count("was replaced while we used it") == 3
    assert "was damaged" not in log.read_text()


@pytest.mark.parametrize("mode", MODES)
def test_a_sleeping_receiver_is_told(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    """It would sleep for ever with a file in which nobody sends to it any more."""
    config = make_config(**MODES[mode])
    receiver, sender = start(config), start(config)
    receiver.begin(take_data, 3)
    sender.call(send_many, receiver.server_id, [b"before"])
    damage(config, remove)
    newcomer = start(config)
    newcomer.call(send_many, receiver.server_id, [b"new"])
    sender.call(send_many, receiver.server_id, [LONG])
    assert receiver.hear() == [b"before", b"new", LONG]


def test_a_sender_that_has_not_looked_carries_over(start: StartPeer, config: Config) -> None:
    """The receiver has moved; the sender's next message still goes to the old file, and arrives."""
    receiver, sender = start(), start()
    sender.call(send_many, receiver.server_id, numbered(b"", 10))
    assert len(receiver.call(take_data, 10)) == 10
    damage(config, remove)
    newcomer = start()
    newcomer.call(send_many, receiver.server_id, [b"new"])
    assert receiver.call(take_data, 1) == [b"new"]
    sender.call(send_without_looking, receiver.server_id.pid, b"late")
    sender.call(send_many, receiver.server_id, [b"after"])
    assert receiver.call(take_data, 2) == [b"late", b"after"]


def send_without_looking(session: Session, pid: int, data: bytes) -> None:
    mover = backend(session.messaging)._mover
    mover.look_if_due = lambda: None  # type: ignore[method-assign]
    session.messaging.send(pid, TEXT, data)
    del mover.look_if_due


def test_a_receiver_that_moves_while_it_is_met(start: StartPeer, config: Config) -> None:
    """The sender opens it in the new file, and appends to that one."""
    receiver, sender = start(), start()
    damage(config, remove)
    newcomer = start()
    newcomer.call(send_many, receiver.server_id, [b"new"])
    assert receiver.call(take_data, 1) == [b"new"]
    sender.call(send_without_looking, receiver.server_id.pid, b"first")
    assert receiver.call(take_data, 1) == [b"first"]


def test_a_receiver_that_moves_before_it_is_woken_up(start: StartPeer, config: Config) -> None:
    """The sender has found that it uses the same file, and reads its epoch when it no longer does."""
    receiver, sender = start(), start()
    sender.call(send_many, receiver.server_id, [b"0"])
    assert receiver.call(take_data, 1) == [b"0"]
    receiver.begin(take_data, 2)
    wait_until_asleep(receiver.pid)
    sender.begin(send_and_stop_once_met, receiver.server_id.pid, b"1")
    os.waitid(os.P_PID, sender.pid, os.WSTOPPED)
    damage(config, remove)
    newcomer = start()
    newcomer.call(send_many, receiver.server_id, [b"new"])
    assert receiver.hear() == [b"1", b"new"]
    sender.resume()
    sender.hear()
    sender.call(send_without_looking, receiver.server_id.pid, b"2")
    assert receiver.call(take_data, 1) == [b"2"]


def send_and_stop_once_met(session: Session, pid: int, data: bytes) -> None:
    wake_ups = backend(session.messaging)._wake_ups
    meet = wake_ups.meet

    def stop(destination: Destination) -> None:
        wake_ups.meet = meet
        meet(destination)
        os.kill(os.getpid(), signal.SIGSTOP)

    wake_ups.meet = stop
    session.messaging.send(pid, TEXT, data)


def test_each_sender_carries_over_its_own(start: StartPeer, config: Config) -> None:
    """Another process moves to a file that is replaced meanwhile: what it carries over would come too late."""
    receiver, sender, other = start(), start(), start()
    for one in (sender, other):
        one.call(send_many, receiver.server_id, [b"0"])
        assert receiver.call(take_data, 1) == [b"0"]
    damage(config, remove)
    other.begin(look_and_stop_in_the_new_file)
    os.waitid(os.P_PID, other.pid, os.WSTOPPED)
    receiver.call(look)
    sender.call(send_without_looking_or_meeting, receiver.server_id.pid, b"1")
    damage(config, remove)
    receiver.call(look)
    other.resume()
    other.hear()
    sender.call(send_many, receiver.server_id, [b"2"])
    assert receiver.call(take_data, 2) == [b"1", b"2"]


def look(session: Session) -> bool:
    return backend(session.messaging)._mover.look()


def look_and_stop_in_the_new_file(session: Session) -> None:
    file = backend(session.messaging)._file
    open_file = file.open

    def open_and_stop() -> Opened:
        file.open = open_file  # type: ignore[method-assign]
        opened = open_file()
        os.kill(os.getpid(), signal.SIGSTOP)
        return opened

    file.open = open_and_stop  # type: ignore[method-assign]
    look(session)


def send_without_looking_or_meeting(session: Session, pid: int, data: bytes) -> None:
    """As if it had been preempted right after its append."""
    wake_ups = backend(session.messaging)._wake_ups
    meet, wake_ups.meet = wake_ups.meet, lambda destination: None
    send_without_looking(session, pid, data)
    wake_ups.meet = meet


def overwrite_head(path: Path) -> None:
    with open(path, "rb+") as file:
        file.write(random.randbytes(160))


def overwrite_first_page(path: Path) -> None:
    """The mutexes and the hash chains as well."""
    with open(path, "rb+") as file:
        file.write(random.randbytes(4096))


@pytest.mark.parametrize("how", [overwrite_head, overwrite_first_page])
@pytest.mark.parametrize("mode", MODES)
def test_overwritten(
    log: Path, make_config: MakeConfig, start: StartPeer, mode: str, how: Callable[[Path], None]
) -> None:
    """It is set aside once, what waited in it is lost, and everybody continues in the new one."""
    config = make_config(**MODES[mode])
    receiver, sender, other = start(config), start(config), start(config)
    for one in (sender, other):
        one.call(send_many, receiver.server_id, numbered(b"", 3000))
    damage(config, how)
    for one in (sender, other):
        one.call(send_many, receiver.server_id, [LONG, *numbered(b"after", 3000)])
    got = receiver.call(take, 2 * 3001)
    for one in (sender, other):
        texts = [message.data for message in got if message.src == one.server_id]
        assert texts == [LONG, *numbered(b"after", 3000)]
    assert {peer.call(inode) for peer in (receiver, sender, other)} == {path_of(config).stat().st_ino}
    assert log.read_text().count("set aside") == 1
    [aside] = path_of(config).parent.glob("messages.tdb.damaged.*")
    assert aside.name in log.read_text()
    receiver.call(close)


@pytest.mark.parametrize("mode", MODES)
def test_overwritten_before_the_receiver_looks(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    """The receiver finds it, sleeps, and is woken up in the new file."""
    config = make_config(**MODES[mode])
    receiver, sender = start(config), start(config)
    sender.call(send_many, receiver.server_id, numbered(b"lost", 3000))
    damage(config, overwrite_head)
    receiver.begin(take_data, 1)
    sender.call(send_many, receiver.server_id, [LONG])
    assert receiver.hear() == [LONG]


def looks(session: Session) -> tuple[bool, str]:
    file = backend(session.messaging)._file
    return file.is_unchanged(), file.state().name


@pytest.mark.parametrize(
    ("how", "state"),
    [
        (remove, "REPLACED"),
        (replace, "REPLACED"),
        (overwrite_head, "DAMAGED"),
        (overwrite_first_page, "DAMAGED"),
        (lambda path: os.truncate(path, 5000), "DAMAGED"),
    ],
)
def test_a_short_look_sees_what_a_long_one_sees(
    start: StartPeer, config: Config, how: Callable[[Path], None], state: str
) -> None:
    """At a wake-up, the size and the bytes of the head are compared with those that were found to be sound."""
    peer = start(config)
    assert peer.call(looks) == (False, "SAME")
    assert peer.call(looks) == (True, "SAME")
    damage(config, how)
    assert peer.call(looks) == (False, state)


@pytest.mark.parametrize("length", [0, 100, 700, 5000, 100_000])
def test_cut_off_without_mmap(log: Path, make_config: MakeConfig, start: StartPeer, length: int) -> None:
    """`use mmap = no` is the way out for those whose file may be cut off: nobody dies, and all continue."""
    config = make_config(**MODES["nommap"])
    receiver, sender, other = start(config), start(config), start(config)
    for one in (sender, other):
        one.call(send_many, receiver.server_id, numbered(b"lost", 3000))
    damage(config, lambda path: os.truncate(path, length))
    for one in (sender, other):
        one.call(send_many, receiver.server_id, [LONG, *numbered(b"after", 3000)])
    got = receiver.call(take_until, b"after2999", 2)
    assert [data for data in got if not data.startswith(b"lost")].count(LONG) == 2
    assert [int(data[5:]) for data in got if data.startswith(b"after")].count(1234) == 2
    assert log.read_text().count("set aside") + log.read_text().count("rebuilt") >= 1
    assert {peer.call(inode) for peer in (receiver, sender, other)} == {path_of(config).stat().st_ino}


def take_until(session: Session, last: bytes, times: int) -> list[bytes]:
    while sum(message.data == last for message in session.messages) < times:
        session.messaging.dispatch(None)
    return [message.data for message in session.messages]


@pytest.mark.parametrize("length", [0, 100, 5000, 100_000])
@pytest.mark.parametrize("mode", ["mutexes", "fcntl"])
def test_cut_off_while_nobody_uses_it(make_config: MakeConfig, start: StartPeer, mode: str, length: int) -> None:
    """Even a mapped file is left in time, if its processes look before they touch it."""
    config = make_config(**MODES[mode])
    receiver, sender = start(config), start(config)
    sender.call(send_many, receiver.server_id, numbered(b"before", 3000))
    assert len(receiver.call(take_data, 3000)) == 3000
    damage(config, lambda path: os.truncate(path, length))
    sender.call(send_many, receiver.server_id, [LONG])
    assert receiver.call(take_data, 1) == [LONG]


def inode_in_words(lock_directory: Path, pid: int) -> int:
    """The inode of the file that the process says it uses."""
    words = (lock_directory / "msg.lock" / str(pid)).read_bytes()[TEXT_MAX:]
    return int.from_bytes(words[FILE * 8 : (FILE + 1) * 8], sys.byteorder)


@pytest.mark.parametrize("mode", MODES)
def test_removed_again_and_again(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    """Two pairs exchange numbered messages meanwhile."""
    config = make_config(**MODES[mode])
    pairs = [start(config) for _ in range(4)]
    removed = 0
    while removed <= 3:  # on a busy machine this process may hardly run during one exchange
        begin_exchange(pairs, {"mutexes": 20_000, "fcntl": 2000, "nommap": 500}[mode])
        removed += remove_while_they_run(pairs, path_of(config))
        end_exchange(pairs)


def remove_while_they_run(pairs: list[Peer], path: Path) -> int:
    """Remove the file whenever all use it; return how often."""
    removed = 0
    while not all(peer.channel.poll() for peer in pairs):
        inode = path.stat().st_ino
        if all(inode_in_words(path.parent, peer.pid) == inode for peer in pairs):
            path.unlink()
            removed += 1
            while not path.exists() and not all(peer.channel.poll() for peer in pairs):
                os.sched_yield()
        os.sched_yield()
    return removed
