# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 10: a broadcast reaches each live process that listens to its class, once; dead ones do not disturb it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from msgd import Config, Message, MessageClass, MessageType, Messaging, ServerID
from msgd.wire.message_types import message_class
from tests.backends.conftest import StartPeer
from tests.support.harness import PATIENCE, TEXT, Channel, Child, Peer, Session, drain, serve, take_data

PROCESSES = 200
VICTIMS = 100
END = b"end"

TYPE_OF = {
    MessageClass.GENERAL: TEXT,
    MessageClass.NMBD: MessageType.FORCE_ELECTION,
    MessageClass.PRINT: MessageType.PRINTER_MOD,
    MessageClass.SMBD: MessageType.SMB_FORCE_TDIS,
    MessageClass.WINBIND: MessageType.WINBIND_ONLINE,
}


def give_names(session: Session, *names: str) -> None:
    for name in names:
        session.messaging.add_name(name)


def take_to_the_end(session: Session) -> list[bytes]:
    """The data of all messages up to END."""
    while not session.messages or session.messages[-1].data != END:
        session.messaging.dispatch(None)
    return [message.data for message in session.messages]


def kill_one_after_the_other(pids: Sequence[int], channel: Channel) -> None:
    for pid in pids:
        channel.recv()
        os.kill(pid, 9)
    channel.send("all")


def left_of(messaging: Messaging, config: Config, pids: set[int]) -> dict[str, set[int]]:
    """What is left of these processes: files, what the backend keeps, names."""
    endpoint = messaging._endpoint
    root = Path(config.lock_directory)
    entries = endpoint.presence._open_names().all_entries().values()
    found = {
        "lock files": {int(path.name) for path in (root / "msg.lock").iterdir()},
        "sockets": {int(path.name) for path in (root / "msg.sock").iterdir()},
        "records": set(endpoint.backend.left_behind()),
        "names": {ServerID.parse(text).pid for one in entries for text in one},
    }
    return {kind: there & pids for kind, there in found.items() if there & pids}


def test_several_messages_at_once(messaging: Messaging, start: StartPeer) -> None:
    """Each process gets all of them, once and in order, more than fit its socket; the dead do not disturb it."""
    texts = [b"%d" % number for number in range(100)]
    peers = [start() for _ in range(4)]
    assert messaging.send_all(TEXT, b"before").delivered == 4
    peers[0].kill()
    result = messaging.send_all_many((TEXT, text) for text in texts)
    assert (result.delivered, result.failures) == (3, {})
    for peer in peers[1:]:
        peer.begin(take_data, 101)
    drain(messaging)
    for peer in peers[1:]:
        assert peer.hear() == [b"before", *texts]
    assert messaging.statistics().sent >= 304


def test_several_messages_of_several_classes(messaging: Messaging, start: StartPeer) -> None:
    """A process gets those of the classes that it listens to, and counts once."""
    general, printing = start(listens=MessageClass.GENERAL), start(listens=MessageClass.PRINT)
    messages = [(TEXT, b"one"), (MessageType.PRINTER_MOD, b"two"), (TEXT, b"three")]
    assert messaging.send_all_many(messages).delivered == 2
    assert general.call(take_data, 2) == [b"one", b"three"]
    messaging.send(printing.server_id, TEXT, b"the next")
    assert printing.call(take_data, 1) == [b"the next"]
    assert messaging.send_all_many([]).delivered == 0


def test_200_processes_of_which_100_are_killed(config: Config, messaging: Messaging, start: StartPeer) -> None:
    peers = [start() for _ in range(PROCESSES)]
    victims, survivors = peers[:VICTIMS], peers[VICTIMS:]
    pids = {peer.pid for peer in victims}
    for peer in peers:
        peer.call(give_names, "all", f"process {peer.pid}")
    for peer in peers:
        peer.begin(take_data, 2)
    for text in (b"first", b"second"):
        result = messaging.send_all(TEXT, text)
        assert (result.delivered, result.failures) == (PROCESSES, {})
    drain(messaging)
    for peer in peers:
        assert peer.hear() == [b"first", b"second"]

    for peer in victims:
        peer.begin(serve)
    for peer in survivors:
        peer.begin(take_to_the_end)
    results = []
    with Child(lambda channel: kill_one_after_the_other(sorted(pids), channel)) as killer:
        for number in range(VICTIMS):
            killer.tell("one more")
            results.append(messaging.send_all(TEXT, b"%d" % number))
            messaging.dispatch()
        assert killer.hear() == "all"
    for peer in victims:
        assert peer.wait() == -9
    assert messaging.send_all(TEXT, END).delivered == len(survivors)
    drain(messaging)
    for peer in survivors:
        assert peer.hear() == [*(b"%d" % number for number in range(VICTIMS)), END]
    for before, after in itertools.pairwise(results):
        assert PROCESSES >= before.delivered >= after.delivered >= len(survivors)
    for result in results:
        assert result.failures.keys() <= pids
        assert result.delivered + len(result.failures) <= PROCESSES
    assert results[0].delivered > len(survivors), "all victims died before the first broadcast"

    assert left_of(messaging, config, pids).keys() >= {"lock files", "names"}
    assert set(messaging.clean_up()) == pids
    assert left_of(messaging, config, pids) == {}
    assert len(messaging.names()["all"]) == len(survivors)
    assert messaging.clean_up() == []


# Classes


def collect_classes(session: Session) -> None:
    """Register for a message type of each class."""
    for message_type in TYPE_OF.values():
        if message_type != TEXT:
            session.messaging.register(message_type, session.messages.append)


def take_types(session: Session, number: int) -> list[int]:
    """The types of the next `number` messages, and of any others that have arrived by then."""
    while len(session.messages) < number:
        session.messaging.dispatch(None)
    session.messaging.dispatch()
    types = [message.type for message in session.messages]
    session.messages.clear()
    return types


@pytest.mark.parametrize(
    ("message_type", "expected"),
    [
        (0, MessageClass.GENERAL),
        (0xFF, MessageClass.GENERAL),
        (0x100, MessageClass.NMBD),
        (0x1FF, MessageClass.NMBD),
        (MessageType.PRINTER_NOTIFY2, MessageClass.PRINT),
        (0x300, MessageClass.SMBD),
        (MessageType.WINBIND_FINISHED, MessageClass.WINBIND),
        (0x4FF, MessageClass.WINBIND),
        (0x500, MessageClass.GENERAL),
        (MessageType.AUTH_LOG, MessageClass.GENERAL),
        (MessageType.DBWRAP_MODIFIED, MessageClass.GENERAL),
        (0xFFFFFFFF, MessageClass.GENERAL),
    ],
)
def test_class_of_a_type(message_type: int, expected: MessageClass) -> None:
    assert message_class(message_type) == expected


def test_processes_hear_the_classes_they_listen_to(messaging: Messaging, start: StartPeer) -> None:
    everything = start()
    some = start(listens=MessageClass.SMBD | MessageClass.PRINT)
    general = start(listens=MessageClass.GENERAL)
    nothing = start(listens=MessageClass(0))
    for peer in (everything, some, general, nothing):
        peer.call(collect_classes)
    counts = {one: messaging.send_all(message_type).delivered for one, message_type in TYPE_OF.items()}
    assert counts == {
        MessageClass.GENERAL: 2,
        MessageClass.NMBD: 1,
        MessageClass.PRINT: 2,
        MessageClass.SMBD: 2,
        MessageClass.WINBIND: 1,
    }
    for peer in (some, general, nothing):  # a message to one process arrives whatever it listens to
        messaging.send(peer.server_id, MessageType.WINBIND_ONLINE)
    assert everything.call(take_types, 5) == list(TYPE_OF.values())
    assert some.call(take_types, 3) == [
        MessageType.PRINTER_MOD,
        MessageType.SMB_FORCE_TDIS,
        MessageType.WINBIND_ONLINE,
    ]
    assert general.call(take_types, 2) == [TEXT, MessageType.WINBIND_ONLINE]
    assert nothing.call(take_types, 1) == [MessageType.WINBIND_ONLINE]


def open_contexts(session: Session) -> list[ServerID]:
    """Replace the context by two that listen to different classes."""
    session.messaging.close()
    contexts = [
        Messaging(session.config, task_id=task_id, listens=listens)
        for task_id, listens in ((3, MessageClass.SMBD), (5, MessageClass.PRINT | MessageClass.SMBD))
    ]
    for context in contexts:
        for message_type in TYPE_OF.values():
            context.register(message_type, session.messages.append)
    session.messaging, *session.kept = contexts
    return [context.server_id for context in contexts]


def close_second(session: Session) -> None:
    session.kept.pop().close()


def take_addresses(session: Session, number: int) -> list[tuple[int, ServerID]]:
    """The types and destinations of the next messages."""
    while len(session.messages) < number:
        session.messaging.dispatch(None)
    session.messaging.dispatch()
    found = [(message.type, message.dst) for message in session.messages]
    session.messages.clear()
    return found


def test_each_context_hears_its_classes(messaging: Messaging, peer: Peer) -> None:
    """A process listens to the classes of all its contexts.  It has no context 0 here."""
    first, second = peer.call(open_contexts)
    assert [messaging.send_all(one).delivered for one in TYPE_OF.values()] == [0, 0, 1, 1, 0]
    assert peer.call(take_addresses, 3) == [
        (MessageType.PRINTER_MOD, second),
        (MessageType.SMB_FORCE_TDIS, first),
        (MessageType.SMB_FORCE_TDIS, second),
    ]
    peer.call(close_second)
    assert [messaging.send_all(one).delivered for one in TYPE_OF.values()] == [0, 0, 0, 1, 0]
    assert peer.call(take_addresses, 1) == [(MessageType.SMB_FORCE_TDIS, first)]


def test_context_that_a_handler_closes(config: Config, peer: Peer) -> None:
    """It does not receive the broadcast that the other context received first."""
    received: list[str] = []
    with Messaging(config) as first, Messaging(config) as second:

        def close_the_other(message: Message) -> None:
            received.append("first")
            second.close()

        first.register(TEXT, close_the_other)
        second.register(TEXT, lambda message: received.append("second"))
        assert peer.call(broadcast, TEXT) == 1
        first.dispatch(PATIENCE)
        assert received == ["first"]
        assert first.statistics().drops == {}


def broadcast(session: Session, message_type: int) -> int:
    return session.messaging.send_all(message_type).delivered


def in_child(messaging: Messaging, channel: Channel) -> None:
    messaging.reinit()
    channel.send("ready")
    messaging.dispatch(None)
    channel.send("heard")


def test_child_listens_as_its_parent_did(config: Config, peer: Peer) -> None:
    with Messaging(config, listens=MessageClass.SMBD) as messaging:
        messaging.register(MessageType.SMB_FORCE_TDIS, lambda message: None)
        with Child(lambda channel: in_child(messaging, channel)) as child:
            assert child.hear() == "ready"
            assert peer.call(broadcast, MessageType.PRINTER_MOD) == 0
            assert peer.call(broadcast, MessageType.SMB_FORCE_TDIS) == 2
            assert child.hear() == "heard"


def test_invalid_type(messaging: Messaging) -> None:
    for message_type in (-1, 1 << 32):
        with pytest.raises(ValueError, match="message type"):
            messaging.send_all(message_type)
