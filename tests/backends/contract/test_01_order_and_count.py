# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 1, order and count: between two live processes, first in, first out, and each message exactly once."""

from __future__ import annotations

from collections import defaultdict

from msgd import Message, Messaging, SendStatus, ServerID
from tests.backends.conftest import StartPeer
from tests.support.harness import TEXT, Peer, Session, dispatch_until, drain, fill, send_many, take, take_data

MESSAGES = 2000
LAST = b"last"


def texts(sender: int) -> list[bytes]:
    """Numbered texts, most of them short; each fiftieth is longer than a datagram."""
    return [b"%d %d %s" % (sender, number, b"x" * (3000 if number % 50 == 0 else 9)) for number in range(MESSAGES)]


def test_many_senders(start: StartPeer) -> None:
    receiver, senders = start(), [start() for _ in range(4)]
    sent = {sender.pid: [*texts(sender.pid), LAST] for sender in senders}
    for sender in senders:
        sender.begin(send_many, receiver.server_id, sent[sender.pid])
    received: dict[int, list[bytes]] = defaultdict(list)
    for message in receiver.call(take, sum(map(len, sent.values()))):
        received[message.src.pid].append(message.data)
    assert received == sent


def test_one_sender_many_receivers(messaging: Messaging, start: StartPeer) -> None:
    receivers = [start() for _ in range(3)]
    for receiver in receivers:
        receiver.begin(take_data, MESSAGES)
    for number in range(MESSAGES):
        for receiver in receivers:
            messaging.send(receiver.server_id, TEXT, b"%d %d" % (receiver.pid, number))
    drain(messaging)
    for receiver in receivers:
        assert receiver.hear() == [b"%d %d" % (receiver.pid, number) for number in range(MESSAGES)]


def take_by_task(session: Session, others: list[int], number: int) -> list[list[Message]]:
    """Open contexts with more task ids; the next `number` messages of each context."""
    by_task = [session.messages]
    contexts = []
    for task_id in others:
        messages: list[Message] = []
        context = Messaging(session.config, task_id=task_id)
        context.register(TEXT, messages.append)
        contexts.append(context)
        by_task.append(messages)
    session.messaging.send(session.kept.pop(), TEXT, b"ready")
    dispatch_until(contexts[0], lambda: sum(map(len, by_task)) >= number)
    return by_task


def keep(session: Session, thing: object) -> None:
    session.kept.append(thing)


def test_tasks_of_a_process(messaging: Messaging, peer: Peer) -> None:
    ready: list[Message] = []
    messaging.register(TEXT, ready.append)
    tasks = [0, 5, 9]
    peer.call(keep, messaging.server_id)
    peer.begin(take_by_task, tasks[1:], 300 * len(tasks))
    dispatch_until(messaging, lambda: ready)
    for number in range(300):
        for task_id in tasks:
            messaging.send(peer.server_id._replace(task_id=task_id), TEXT, b"%d %d" % (task_id, number))
    drain(messaging)
    by_task = peer.hear()
    for task_id, messages in zip(tasks, by_task, strict=True):
        assert [message.data for message in messages] == [b"%d %d" % (task_id, number) for number in range(300)]
        assert {message.dst for message in messages} == {peer.server_id._replace(task_id=task_id)}


def test_addresses_in_a_message(messaging: Messaging, peer: Peer) -> None:
    messaging.send(peer.server_id, TEXT, b"by server id")
    messaging.send(peer.pid, TEXT, b"by pid")
    messaging.send(str(peer.pid), TEXT, b"by text")
    messaging.send(str(peer.server_id), TEXT, b"by full text")
    taken = peer.call(take, 4)
    assert [message.data for message in taken] == [b"by server id", b"by pid", b"by text", b"by full text"]
    assert {message.src for message in taken} == {messaging.server_id}
    assert [message.dst for message in taken] == [peer.server_id, *[ServerID(peer.pid)] * 2, peer.server_id]
    assert {message.type for message in taken} == {TEXT}


def test_merged_duplicates(messaging: Messaging, peer: Peer) -> None:
    """duplicates_allowed=False: an identical message that is still queued stands for the new one."""
    filled = fill(messaging, peer.server_id)
    waiting = filled[-1]
    assert messaging.send(peer.server_id, TEXT, b"other", duplicates_allowed=False) is not SendStatus.MERGED
    assert messaging.send(peer.server_id, TEXT, waiting, duplicates_allowed=False) is SendStatus.MERGED
    assert messaging.send(peer.server_id, TEXT, b"other", duplicates_allowed=False) is SendStatus.MERGED
    assert messaging.send(peer.server_id, TEXT + 1, b"other", duplicates_allowed=False) is not SendStatus.MERGED
    assert messaging.send(peer.server_id, TEXT, waiting) is not SendStatus.MERGED
    messaging.send(peer.server_id, TEXT, LAST)
    peer.begin(take_data, len(filled) + 3)
    drain(messaging)
    assert peer.hear() == [*filled, b"other", waiting, LAST]
