# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 3: if a receiver is full, the sender queues up to a bound; nothing blocks or is dropped silently."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from types import FrameType

import pytest

from msgd import Message, Messaging, NoSuchProcess, QueueFull, SendStatus, ServerID
from tests.backends.conftest import MakeConfig, StartPeer
from tests.support.harness import (
    PATIENCE,
    TEXT,
    Peer,
    Session,
    close,
    dispatch_until,
    drain,
    fill,
    take,
    take_data,
    wait_until_asleep,
)

BURST = 1000


def fill_to_the_bound(messaging: Messaging, dst: ServerID, size: int = 0) -> int:
    """Send numbered messages until one is refused; the number of accepted ones."""
    for number in range(1 << 20):
        try:
            messaging.send(dst, TEXT, b"%d" % number + b"." * size)
        except QueueFull:
            return number
    raise AssertionError("nothing bounds the queue")


def numbered(number: int, size: int = 0) -> list[bytes]:
    return [b"%d" % one + b"." * size for one in range(number)]


def test_burst_against_a_stopped_receiver(messaging: Messaging, peer: Peer) -> None:
    """All sends return while the receiver is stopped; all messages arrive in order once it reads."""
    peer.stop()
    statuses = [messaging.send(peer.server_id, TEXT, text) for text in numbered(BURST)]
    statistics = messaging.statistics()
    assert statistics.sent == BURST
    assert statistics.queued_messages == statuses.count(SendStatus.QUEUED)
    assert statistics.blocked_destinations == (SendStatus.QUEUED in statuses)
    messaging.dispatch()
    assert messaging.statistics() == statistics, "a dispatch cannot have flushed anything"
    peer.resume()
    peer.begin(take_data, BURST)
    drain(messaging)
    assert peer.hear() == numbered(BURST)
    assert messaging.statistics().drops == {}


def test_large_messages_to_a_slow_receiver(messaging: Messaging, peer: Peer) -> None:
    """Sending is interrupted in the middle of a message, again and again."""
    data = [os.urandom(size) for size in (100_000, 10, 50_000, 2500, 0, 964, 200_000)]
    for one in data:
        messaging.send(peer.server_id, TEXT, one)
    for one in data:
        peer.begin(take_data, 1)
        dispatch_until(messaging, peer.channel.poll, peer.channel)
        assert peer.hear() == [one]


def test_other_destinations_are_not_held_up(messaging: Messaging, start: StartPeer) -> None:
    stopped, running = start(), start()
    stopped.stop()
    for text in numbered(200):
        messaging.send(stopped.server_id, TEXT, text)
    for text in numbered(200):
        running.begin(take_data, 1)
        messaging.send(running.server_id, TEXT, text)
        assert running.hear() == [text]
    stopped.resume()
    stopped.begin(take_data, 200)
    drain(messaging)
    assert stopped.hear() == numbered(200)


@pytest.mark.parametrize(("bounds", "size"), [({"send_queue_messages": 50}, 0), ({"send_queue_bytes": 70_000}, 1100)])
def test_queue_full(make_config: MakeConfig, peer: Peer, bounds: dict[str, int], size: int) -> None:
    config = make_config(max_message_size=65536, **bounds)
    with Messaging(config) as messaging:
        accepted = fill_to_the_bound(messaging, peer.server_id, size)
        statistics = messaging.statistics()
        assert statistics.sent == accepted >= 50
        assert statistics.queued_messages <= config.send_queue_messages
        assert statistics.queued_bytes <= config.send_queue_bytes
        with pytest.raises(QueueFull, match=f"pid {peer.pid} does not read"):
            messaging.send(peer.server_id, TEXT, b"refused" + b"." * size)
        peer.begin(take_data, accepted)
        drain(messaging)
        assert peer.hear() == numbered(accepted, size)
        messaging.send(peer.server_id, TEXT, b"room again")
        assert peer.call(take_data, 1) == [b"room again"]
        assert messaging.statistics().drops == {}


def test_message_larger_than_the_bound_of_the_queue(make_config: MakeConfig, peer: Peer) -> None:
    """An empty queue accepts a message larger than its bound in bytes."""
    with Messaging(make_config(send_queue_bytes=65536, max_message_size=65536)) as messaging:
        messaging.send(peer.server_id, TEXT, bytes(65536))
        peer.begin(take_data, 1)
        drain(messaging)
        assert peer.hear() == [bytes(65536)]


def test_timeout_runs_out(make_config: MakeConfig, peer: Peer) -> None:
    with Messaging(make_config(send_queue_messages=20)) as messaging:
        accepted = fill_to_the_bound(messaging, peer.server_id)
        began = time.monotonic()
        with pytest.raises(QueueFull):
            messaging.send(peer.server_id, TEXT, b"too late", timeout=0.1)
        assert time.monotonic() - began >= 0.1
        peer.begin(take_data, accepted)
        drain(messaging)
        assert peer.hear() == numbered(accepted)


def test_signals_do_not_prolong_the_timeout(make_config: MakeConfig, peer: Peer) -> None:
    """Signals interrupt the wait far more often than its timeout is long."""
    signals = 0

    def count(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        assert signals < 50 * PATIENCE, "the timeout never expires"

    with Messaging(make_config(send_queue_messages=20)) as messaging:
        fill_to_the_bound(messaging, peer.server_id)
        before = signal.signal(signal.SIGALRM, count)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        try:
            with pytest.raises(QueueFull):
                messaging.send(peer.server_id, TEXT, b"too late", timeout=0.3)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert signals > 1


def fill_for(session: Session, dst: ServerID) -> int:
    return fill_to_the_bound(session.messaging, dst)


def send_waiting(session: Session, dst: ServerID, text: bytes, timeout: float = PATIENCE) -> str:
    """Send, waiting for room; then dispatch until nothing is queued."""
    status = session.messaging.send(dst, TEXT, text, timeout=timeout)
    drain(session.messaging)
    return status.value


def test_timeout_waits_for_room(make_config: MakeConfig, start: StartPeer) -> None:
    sender, receiver = start(make_config(send_queue_messages=20)), start()
    accepted = sender.call(fill_for, receiver.server_id)
    sender.begin(send_waiting, receiver.server_id, b"patient")
    assert receiver.call(take_data, accepted + 1) == [*numbered(accepted), b"patient"]
    assert sender.hear() in ("sent", "queued")


@pytest.mark.parametrize("timeout", [1e9, math.inf], ids=["decades", "no limit"])
def test_timeout_longer_than_the_kernel_accepts(make_config: MakeConfig, start: StartPeer, timeout: float) -> None:
    sender, receiver = start(make_config(send_queue_messages=20)), start()
    accepted = sender.call(fill_for, receiver.server_id)
    sender.begin(send_waiting, receiver.server_id, b"patient", timeout)
    wait_until_asleep(sender.pid)
    assert receiver.call(take_data, accepted + 1) == [*numbered(accepted), b"patient"]
    assert sender.hear() in ("sent", "queued")
    sender.begin(dispatch_waiting, timeout)
    wait_until_asleep(sender.pid)
    receiver.call(send_queued, sender.server_id, 1)
    assert sender.hear() == 1


def dispatch_waiting(session: Session, timeout: float) -> int:
    return session.messaging.dispatch(timeout)


def send_waiting_for_the_dead(session: Session, dst: ServerID) -> str:
    try:
        session.messaging.send(dst, TEXT, b"never", timeout=PATIENCE)
    except NoSuchProcess as error:
        return type(error).__name__
    return "sent"


def test_timeout_ends_with_the_receiver(make_config: MakeConfig, start: StartPeer) -> None:
    sender, receiver = start(make_config(send_queue_messages=20)), start()
    sender.call(fill_for, receiver.server_id)
    sender.begin(send_waiting_for_the_dead, receiver.server_id)
    receiver.kill()
    assert sender.hear() == "NoSuchProcess"


def test_close_sends_what_is_queued(start: StartPeer) -> None:
    sender, receiver = start(), start()
    sender.call(send_queued, receiver.server_id, 500)
    sender.begin(close)
    assert receiver.call(take_data, 500) == numbered(500)
    assert sender.hear() == 0


def send_queued(session: Session, dst: ServerID, number: int) -> None:
    """Send without waiting for room."""
    for text in numbered(number):
        session.messaging.send(dst, TEXT, text)


def test_close_does_not_wait_for_itself(make_config: MakeConfig) -> None:
    """Nobody will read what a process has queued for itself, so close() gives it up at once."""
    with Messaging(make_config(close_timeout=1000)) as messaging:
        fill(messaging, messaging.server_id)
        queued = messaging.statistics().queued_messages
        assert messaging.close() == queued


def test_drops_are_counted_and_logged_once_a_second(messaging: Messaging, caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "msgd"):
        for _ in range(300):
            messaging.send(messaging.server_id, TEXT, b"no handler")
            messaging.dispatch()
    elapsed = time.monotonic() - began
    assert sum(messaging.statistics().drops.values()) == 300
    assert 1 <= len(caplog.records) <= 1 + elapsed
    first = caplog.records[0].getMessage()
    assert str(messaging.server_id) in first
    assert f"{TEXT:#x}" in first


def test_each_reason_is_logged_at_its_own_rate(messaging: Messaging, caplog: pytest.LogCaptureFixture) -> None:
    """A recent log line for one reason does not suppress that of another."""
    with Messaging(messaging.config, task_id=77) as other:
        messaging.send(other.server_id, TEXT, b"no context once it is taken")
    with caplog.at_level(logging.WARNING, "msgd"):
        messaging.send(messaging.server_id, TEXT, b"no handler")
        messaging.dispatch()
    assert len(caplog.records) == 2
    assert len(messaging.statistics().drops) == 2


def test_two_processes_full_of_each_other(messaging: Messaging, peer: Peer) -> None:
    """Both have more to send than the other's queue holds; each must read while it waits."""
    messages: list[Message] = []
    messaging.register(TEXT, messages.append)
    peer.begin(exchange, messaging.server_id, BURST)
    for text in numbered(BURST):
        messaging.send(peer.server_id, TEXT, text)
    dispatch_until(messaging, lambda: len(messages) == BURST)
    drain(messaging)
    assert peer.hear() == numbered(BURST)
    assert [message.data for message in messages] == numbered(BURST)


def exchange(session: Session, dst: ServerID, number: int) -> list[bytes]:
    """Send `number` messages and receive as many."""
    send_queued(session, dst, number)
    messages = take(session, number)
    drain(session.messaging)
    return [message.data for message in messages]
