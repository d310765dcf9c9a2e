# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The queue in the sending process on dgram, where the kernel's own queue is short."""

from __future__ import annotations

import logging
import select
import socket

import pytest

from msgd import Config, Message, Messaging, SendStatus
from msgd.backends.dgram.backend import DgramBackend
from msgd.events import DROPPED
from tests.backends.conftest import MakeConfig, StartPeer
from tests.backends.dgram.raw import read_short_datagrams_only
from tests.support.harness import PATIENCE, TEXT, Peer, Session, drain, fill, take_data

MESSAGING_TYPES = frozenset({"dgram"})


def test_kernel_queue_is_shorter_than_a_burst(messaging: Messaging, peer: Peer) -> None:
    """A premise of the tests with bursts: the sender has to queue some of the messages."""
    with open("/proc/sys/net/unix/max_dgram_qlen") as file:
        assert int(file.read()) < 300, "the kernel's queue is too long for the tests against a full receiver"
    statuses = [messaging.send(peer.server_id, TEXT, b"x") for _ in range(300)]
    assert SendStatus.QUEUED in statuses
    assert messaging.statistics().queued_messages == statuses.count(SendStatus.QUEUED)
    assert messaging.pending(peer.server_id) == statuses.count(SendStatus.QUEUED)
    peer.begin(take_data, 300)
    drain(messaging)
    assert peer.hear() == [b"x"] * 300
    assert messaging.pending(peer.server_id) == 0


def readable(messaging: Messaging, timeout: float = 0) -> bool:
    return bool(select.select([messaging.fileno()], [], [], timeout)[0])


def test_fileno_is_readable_when_a_blocked_destination_has_room(messaging: Messaging, peer: Peer) -> None:
    number = 0
    while not messaging.statistics().queued_messages:
        messaging.send(peer.server_id, TEXT, b"%d" % number)
        number += 1
    assert not readable(messaging), "there is nothing to do before the receiver reads"
    peer.begin(take_data, number)
    assert readable(messaging, PATIENCE)
    drain(messaging)
    assert not readable(messaging)
    assert peer.hear() == [b"%d" % one for one in range(number)]


def test_blocked_queue_of_a_process_that_dies(messaging: Messaging, peer: Peer) -> None:
    while not messaging.statistics().queued_messages:
        messaging.send(peer.server_id, TEXT, b"never read")
    assert not readable(messaging)
    peer.kill()
    assert readable(messaging, PATIENCE)
    messaging.dispatch()
    assert messaging.statistics().queued_messages == 0
    assert not readable(messaging)


def test_short_messages_that_wait_go_in_batches(messaging: Messaging, peer: Peer) -> None:
    """A full socket takes 10 datagrams; a dispatch of the sender's fills it with some hundred messages."""
    texts = fill(messaging, peer.server_id, 500)
    queued = messaging.pending(peer.server_id)
    assert peer.call(take_data, 500 - queued) == texts[: 500 - queued]
    messaging.dispatch()
    assert messaging.pending(peer.server_id) == 0
    assert peer.call(take_data, queued) == texts[500 - queued :]


def test_long_ones_and_descriptors_among_the_short_ones(messaging: Messaging, peer: Peer) -> None:
    texts = fill(messaging, peer.server_id, 100)
    for number in range(300):
        texts.append(b"%d" % number * (1000 if number % 7 == 0 else 1))
        messaging.send(peer.server_id, TEXT, texts[-1], fds=(0,) if number % 5 == 0 else ())
    peer.begin(take_data, len(texts))
    drain(messaging)
    assert peer.hear() == texts


def test_no_batches_for_a_process_that_does_not_ask_for_them(messaging: Messaging, peer: Peer) -> None:
    """Such a process reads 1024 bytes of a datagram, as Samba's do."""
    peer.call(read_short_datagrams_only)
    texts = fill(messaging, peer.server_id, 200)
    assert messaging.send_all_many([(TEXT, b"one"), (TEXT, b"two")]).delivered == 1
    backend = messaging._endpoint.backend
    assert isinstance(backend, DgramBackend)
    assert not backend._destinations[peer.pid].reads_batches
    peer.begin(take_data, 202)
    drain(messaging)
    assert peer.hear() == [*texts, b"one", b"two"]


def test_close_reports_undelivered_messages(
    make_config: MakeConfig, start: StartPeer, caplog: pytest.LogCaptureFixture
) -> None:
    peer = start(make_config())
    with Messaging(make_config(close_timeout=0.05)) as messaging:
        fill(messaging, peer.server_id, 500)
        queued = messaging.statistics().queued_messages
        with caplog.at_level(logging.WARNING, "msgd"):
            undelivered = messaging.close()
    assert undelivered == queued > 0
    [record] = caplog.records
    for_the_journal = {"MESSAGE_ID": DROPPED, "MESSAGE_TYPE": f"{TEXT:#x}", "PEER_PID": str(peer.server_id.pid)}
    assert for_the_journal.items() <= vars(record).items()
    line = record.getMessage()
    assert f"{undelivered} messages" in line
    assert str(peer.server_id) in line
    assert f"{TEXT:#x}" in line
    assert peer.call(take_data, 500 - undelivered) == [b"%d" % one for one in range(500 - undelivered)]


def test_close_does_not_wait_for_the_dead(make_config: MakeConfig, start: StartPeer) -> None:
    """Messages queued for a process that dies are given up at once, however long the close timeout is."""
    peer = start()
    with Messaging(make_config(close_timeout=PATIENCE)) as messaging:
        fill(messaging, peer.server_id, 500)
        queued = messaging.statistics().queued_messages
        peer.kill()
        messaging.dispatch()
        assert messaging.statistics().queued_messages == 0
        assert sum(messaging.statistics().drops.values()) == queued > 0


def drop_counts(session: Session) -> int:
    return sum(session.messaging.statistics().drops.values())


def test_larger_than_the_receivers_maximum(make_config: MakeConfig, start: StartPeer, messaging: Messaging) -> None:
    """The receiver drops and counts such a message; those behind it arrive."""
    peer = start(make_config(max_message_size=5000))
    peer.begin(take_data, 1)
    messaging.send(peer.server_id, TEXT, bytes(5001))
    messaging.send(peer.server_id, TEXT, b"after")
    drain(messaging)
    assert peer.hear() == [b"after"]
    assert peer.call(drop_counts) >= 1


def test_two_directories(messaging: Messaging, peer: Peer, scratch_config: Config) -> None:
    """A process in two rendezvous directories has two separate endpoints."""
    with Messaging(scratch_config) as other:
        assert [process.pid for process in other.processes()] == [other.server_id.pid]
        assert {process.pid for process in messaging.processes()} == {messaging.server_id.pid, peer.pid}
        messages: list[Message] = []
        messaging.register(TEXT, messages.append)
        other.send(other.server_id, TEXT, b"not for the first")
        other.dispatch()
        messaging.dispatch()
        assert messages == []


def test_largest_message_type(messaging: Messaging) -> None:
    received: list[int] = []
    messaging.register(0xFFFFFFFF, lambda message: received.append(message.type))
    messaging.send(messaging.server_id, 0xFFFFFFFF)
    assert messaging.dispatch() == 1
    assert received == [0xFFFFFFFF]


def test_default_timeout_of_the_programs_sockets(messaging: Messaging, peer: Peer) -> None:
    """It applies to the program's own sockets only: messages to a full receiver are queued at once, and none fails."""
    socket.setdefaulttimeout(0.05)
    try:
        texts = fill(messaging, peer.server_id)
    finally:
        socket.setdefaulttimeout(None)
    assert messaging.statistics().queued_messages
    peer.begin(take_data, len(texts))
    drain(messaging)
    assert peer.hear() == texts


class Interrupt(BaseException):
    """The exception of a signal handler."""


def test_interrupted_after_the_last_queued_message(
    messaging: Messaging, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The destination is still blocked although its queue is empty; flush() with a timeout copes with that."""
    while not messaging.statistics().queued_messages:
        messaging.send(peer.server_id, TEXT)
    number = messaging.statistics().sent
    assert len(peer.call(take_data, number - 1)) == number - 1
    backend = messaging._endpoint.backend

    def interrupted(destination: object) -> None:
        raise Interrupt

    monkeypatch.setattr(backend, "_unblock", interrupted)
    with pytest.raises(Interrupt):
        backend.flush()
    monkeypatch.undo()
    assert messaging.pending(peer.server_id) == 0
    backend.flush(PATIENCE)
    assert messaging.statistics().blocked_destinations == 0
    assert len(peer.call(take_data, 1)) == 1
