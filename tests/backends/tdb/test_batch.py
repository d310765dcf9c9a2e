# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A burst for one process: it goes into PID/<pid> in one append and with one signal, or not at all."""

from __future__ import annotations

import pytest

from msgd import Messaging, ServerID
from msgd.backends.tdb.backend import TdbBackend
from msgd.backends.tdb.grants import DEEPEST
from msgd.wire.tdb_record import RECORD_TYPE_MAX, pack_message, queue_key
from tests.backends.conftest import MakeConfig, StartPeer
from tests.backends.tdb.conftest import MODES
from tests.support.harness import TEXT, Peer, Session, send_many, take_data, wait_until_asleep

BURST = [(TEXT, b"%d" % number) for number in range(16)]
TEXTS = [data for _, data in BURST]


def backend(messaging: Messaging) -> TdbBackend:
    one = messaging._endpoint.backend
    assert isinstance(one, TdbBackend)
    return one


def in_record(messaging: Messaging, pid: int) -> bytes:
    value: bytes | None = backend(messaging)._file.tdb.get(queue_key(pid))
    assert value is not None
    return value


def send_batch(messaging: Messaging, dst: ServerID, messages: list[tuple[int, bytes]]) -> bool:
    return backend(messaging).send_batch(dst, messaging.server_id, messages)


@pytest.fixture
def peer(messaging: Messaging, start: StartPeer) -> Peer:
    """A process that we have sent a message to, and which has read it."""
    peer = start()
    messaging.send(peer.server_id, TEXT, b"first")
    assert peer.call(take_data, 1) == [b"first"]
    return peer


def test_one_append(messaging: Messaging, peer: Peer) -> None:
    """The messages are packed as those that are sent one by one."""
    appended: list[bytes] = []
    outgoing = backend(messaging)._destinations.find(peer.server_id)
    tdb = outgoing._tdb

    class Counting:
        get = staticmethod(tdb.get)

        @staticmethod
        def append(key: bytes, value: bytes) -> None:
            appended.append(value)
            tdb.append(key, value)

    outgoing._tdb = Counting()
    assert messaging.send_all_many(BURST).delivered == 1
    outgoing._tdb = tdb
    assert len(appended) == 1
    assert in_record(messaging, peer.pid) == appended[0]
    assert peer.call(take_data, 16) == TEXTS


def test_as_one_by_one(messaging: Messaging, peer: Peer) -> None:
    src = messaging.server_id
    assert send_batch(messaging, peer.server_id, BURST)
    assert in_record(messaging, peer.pid) == b"".join(pack_message(peer.server_id, src, *one) for one in BURST)


def test_one_signal(messaging: Messaging, peer: Peer) -> None:
    """The receiver sleeps, and finds all of them when it wakes up."""
    peer.begin(take_at_once)
    wait_until_asleep(peer.pid)
    assert messaging.send_all_many(BURST).delivered == 1
    assert peer.hear() == 16


def take_at_once(session: Session) -> int:
    session.messages.clear()
    session.messaging.dispatch(None)
    return len(session.messages)


@pytest.mark.parametrize("mode", MODES)
def test_in_order(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    """Bursts and single messages mix, also while the queue goes on in segments and comes back from there."""
    config = make_config(**MODES[mode])
    receiver, sender = start(config), start(config)
    for _ in range(2):
        texts = sender.call(send_mixed, receiver.server_id)
        assert receiver.call(take_data, len(texts)) == texts


def send_mixed(session: Session, dst: ServerID) -> list[bytes]:
    texts: list[bytes] = []
    for number in range(40):
        send_many(session, dst, [b"single %d" % number])
        assert session.messaging.send_all_many(BURST).delivered == 1
        texts += [b"single %d" % number, *TEXTS]
    return texts


@pytest.mark.parametrize(
    "messages",
    [
        [(TEXT, bytes(DEEPEST))],
        [(TEXT, b"1" * 100)] * 100,
        [(TEXT, b"1"), (RECORD_TYPE_MAX + 1, b"2")],
    ],
    ids=["long", "many", "type"],
)
def test_what_is_no_batch(messaging: Messaging, peer: Peer, messages: list[tuple[int, bytes]]) -> None:
    """Nothing has been appended then."""
    assert not send_batch(messaging, peer.server_id, messages)
    assert in_record(messaging, peer.pid) == b""


def test_to_whom_there_is_no_batch(messaging: Messaging, peer: Peer, start: StartPeer) -> None:
    """Not to one that is not open yet, nor without a unique id, nor with another one, nor to the dead."""
    stranger = start()
    wrong = ServerID(peer.pid, unique_id=peer.server_id.unique_id + 1)
    for dst in (stranger.server_id, ServerID(peer.pid), wrong):
        assert not send_batch(messaging, dst, BURST)
    peer.kill()
    assert not send_batch(messaging, peer.server_id, BURST)


def test_within_the_bounds(make_config: MakeConfig, start: StartPeer) -> None:
    """Each message of a burst counts, in PID/<pid> and behind it."""
    config = make_config(send_queue_messages=40)
    receiver, sender = start(config), start(config)
    assert sender.call(send_bursts, 4) == [16, 16, 8, 0]
    assert receiver.call(take_data, 40) == [*TEXTS, *TEXTS, *TEXTS[:8]]


def send_bursts(session: Session, number: int) -> list[int]:
    """Send so many bursts; return how many messages of each were sent."""
    sent, before = [], session.messaging.statistics().sent
    for _ in range(number):
        session.messaging.send_all_many(BURST)
        now = session.messaging.statistics().sent
        sent.append(now - before)
        before = now
    return sent
