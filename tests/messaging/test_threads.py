# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Threads: any may send, ask and register; one dispatches at a time; nothing is lost, doubled or reordered."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

from msgd import (
    AlreadyDispatching,
    BackendUnavailable,
    Config,
    ContextClosed,
    Message,
    Messaging,
    QueueFull,
    ServerID,
    TransportError,
)
from tests.backends.conftest import StartPeer
from tests.messaging.test_requests import ANSWER, ASK, echo
from tests.support.harness import PATIENCE, TEXT, Peer, Session, serve

SECONDS = float(os.environ.get("MSGD_SOAK", "1"))
"""How long the soak runs for each messaging type; an issue asks for 60."""

_NUMBERED = struct.Struct("<IQ")
THREADS = 8
END = 0xF3FF


def count_in_order(session: Session, senders: int) -> dict[tuple[int, int], int]:
    """Receive numbered messages until each thread has said how many there were; the number of each."""
    following: dict[tuple[int, int], int] = defaultdict(int)
    ended: dict[tuple[int, int], int] = {}

    def take(message: Message) -> None:
        thread, number = _NUMBERED.unpack(message.data)
        key = message.src.pid, thread
        assert number == following[key], f"{key}: {number} came where {following[key]} was due"
        following[key] += 1

    def end(message: Message) -> None:
        thread, number = _NUMBERED.unpack(message.data)
        ended[message.src.pid, thread] = number

    session.messaging.register(TEXT, take)
    session.messaging.register(END, end)
    while len(ended) < senders:
        session.messaging.dispatch(None)
    assert session.messaging.statistics().handler_errors == 0
    assert dict(following) == ended
    return dict(following)


def send_from_threads(session: Session, receivers: list[ServerID], seconds: float) -> int:
    """Send numbered messages from THREADS threads to all receivers, one thread dispatching meanwhile."""
    messaging, stop = session.messaging, threading.Event()

    def send(thread: int) -> int:
        number, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(16):
                for dst in receivers:
                    messaging.send(dst, TEXT, _NUMBERED.pack(thread, number), timeout=PATIENCE)
                number += 1
        for dst in receivers:
            messaging.send(dst, END, _NUMBERED.pack(thread, number), timeout=PATIENCE)
        return number

    with ThreadPoolExecutor(THREADS) as pool:
        sending = [pool.submit(send, thread) for thread in range(THREADS)]
        while not all(one.done() for one in sending):
            messaging.dispatch(0.01)
        total = sum(one.result() for one in sending)
    while messaging.statistics().queued_messages:
        messaging.dispatch(0.01)
    stop.set()
    return total


def test_soak(start: StartPeer) -> None:
    """Eight threads in each of two processes send to two others: every message once, in order for each thread."""
    senders, receivers = [start(), start()], [start(), start()]
    addresses = [one.server_id for one in receivers]
    for one in receivers:
        one.begin(count_in_order, THREADS * len(senders))
    for one in senders:
        one.begin(send_from_threads, addresses, SECONDS)
    sent = sum(one.channel.poll(SECONDS + PATIENCE) and one.hear() for one in senders)
    for one in receivers:
        assert one.channel.poll(SECONDS + PATIENCE)
        assert sum(one.hear().values()) == sent
    assert sent > 0


def test_second_dispatcher_is_refused(messaging: Messaging) -> None:
    inside, leave = threading.Event(), threading.Event()

    def wait(message: Message) -> None:
        inside.set()
        leave.wait(PATIENCE)

    messaging.register(TEXT, wait)
    messaging.send(messaging.server_id, TEXT)

    def second() -> None:
        assert inside.wait(PATIENCE)
        try:
            with pytest.raises(AlreadyDispatching, match="another thread dispatches"):
                messaging.dispatch()
        finally:
            leave.set()

    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(second)
        assert messaging.dispatch(PATIENCE) == 1
        refused.result()


def test_handler_may_dispatch(messaging: Messaging) -> None:
    seen: list[bytes] = []

    def outer(message: Message) -> None:
        seen.append(message.data)
        messaging.dispatch()

    messaging.register(TEXT, outer)
    for text in (b"one", b"two"):
        messaging.send(messaging.server_id, TEXT, text)
    while len(seen) < 2:
        messaging.dispatch(PATIENCE)
    assert seen == [b"one", b"two"]


def test_requests_beside_a_dispatching_thread(messaging: Messaging, peer: Peer) -> None:
    peer.begin(echo)
    with ThreadPoolExecutor(4) as pool:
        texts = [b"%d" % number for number in range(40)]
        asked = [pool.submit(messaging.request, peer.server_id, ASK, text, ANSWER, PATIENCE) for text in texts]
        while not all(one.done() for one in asked):
            messaging.dispatch(0.01)
        assert [one.result().data for one in asked] == texts


def test_guest_gives_way_to_dispatch(messaging: Messaging, peer: Peer) -> None:
    """A thread that waits for an answer dispatches meanwhile; it is no reason for dispatch() to be refused."""
    got: list[bytes] = []
    messaging.register(TEXT, lambda message: got.append(message.data))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(messaging.request, peer.server_id, ASK, b"late", ANSWER, PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while not messaging._endpoint.turn.owner and time.monotonic() < deadline:
            os.sched_yield()
        messaging.send(messaging.server_id, TEXT, b"mine")
        while not got:
            messaging.dispatch(0.05)
        peer.begin(echo)
        while not asked.done():
            messaging.dispatch(0.01)
        assert asked.result().data == b"late"


def fill(messaging: Messaging, dst: ServerID) -> None:
    """Send until the destination's queue is at its bound."""
    with contextlib.suppress(QueueFull):
        while True:
            messaging.send(dst, TEXT, b"x")


def test_send_waits_for_room_in_a_thread(make_config: object, start: StartPeer) -> None:
    config: Config = make_config(send_queue_messages=10)  # type: ignore[operator]
    peer = start(config)
    with Messaging(config) as messaging:
        fill(messaging, peer.server_id)
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(messaging.send, peer.server_id, TEXT, b"y", timeout=PATIENCE) for _ in range(2)]
            peer.begin(serve)
            for one in waiting:
                one.result()


def test_close_ends_the_dispatch_of_another_thread(config: Config) -> None:
    messaging = Messaging(config)
    with ThreadPoolExecutor(1) as pool:
        dispatching = pool.submit(messaging.dispatch, None)
        deadline = time.monotonic() + PATIENCE
        while not messaging._endpoint.turn.owner and time.monotonic() < deadline:
            os.sched_yield()
        messaging.close()
        assert dispatching.result(PATIENCE) == 0
    with pytest.raises(ContextClosed):
        messaging.send(messaging.server_id, TEXT)


# The background dispatcher


def test_background_dispatcher(config: Config, peer: Peer) -> None:
    messaging = Messaging(config)
    if config.messaging_type == "tdb":
        with pytest.raises(BackendUnavailable, match="main"):
            messaging.start()
        messaging.close()
        return
    got = threading.Event()
    threads: list[str] = []

    def take(message: Message) -> None:
        threads.append(threading.current_thread().name)
        got.set()

    messaging.register(TEXT, take)
    messaging.start()
    messaging.start()
    messaging.send(messaging.server_id, TEXT)
    assert got.wait(PATIENCE)
    assert threads == ["msgd-dispatcher"]
    messaging.close()
    assert "msgd-dispatcher" not in {thread.name for thread in threading.enumerate()}


def test_no_thread_for_the_background_dispatcher(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may still dispatch."""
    if config.messaging_type == "tdb":
        return

    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Messaging(config) as messaging:
        got: list[Message] = []
        messaging.register(TEXT, got.append)
        monkeypatch.setattr(threading.Thread, "start", refused)
        with pytest.raises(TransportError, match="can't start new thread"):
            messaging.start()
        monkeypatch.undo()
        messaging.send(messaging.server_id, TEXT)
        assert messaging.dispatch(PATIENCE) == 1


def test_background_dispatcher_stops_when_its_handler_closes(config: Config) -> None:
    if config.messaging_type == "tdb":
        return
    messaging = Messaging(config)
    closed = threading.Event()

    def close(message: Message) -> None:
        messaging.close()
        closed.set()

    messaging.register(TEXT, close)
    messaging.start()
    messaging.send(messaging.server_id, TEXT)
    assert closed.wait(PATIENCE)


def test_close_at_once_ends_the_dispatch_of_another_thread(config: Config) -> None:
    """close(timeout=0), as aclose() ends, gives the other thread the moment that it needs to leave."""
    messaging = Messaging(config)
    with ThreadPoolExecutor(1) as pool:
        dispatching = pool.submit(messaging.dispatch, None)
        deadline = time.monotonic() + PATIENCE
        while not messaging._endpoint.turn.owner and time.monotonic() < deadline:
            os.sched_yield()
        messaging.close(timeout=0)
        assert dispatching.result(PATIENCE) == 0


def test_nobody_dispatches_beside_the_background_dispatcher(config: Config) -> None:
    """It sleeps between messages, and has its place all the same; a handler's SystemExit does not end it."""
    if config.messaging_type == "tdb":
        return
    with Messaging(config) as messaging:
        messaging.register(ASK, lambda message: messaging.reply(message, ANSWER))
        messaging.register(TEXT, lambda message: sys.exit(1))
        messaging.start()
        messaging.send(messaging.server_id, TEXT)
        for _ in range(50):
            with pytest.raises(AlreadyDispatching, match=r"stop\(\) first"):
                messaging.dispatch()
            messaging.request(messaging.server_id, ASK, b"", ANSWER, PATIENCE)
        messaging.stop()
        messaging.dispatch()
        messaging.start()
        messaging.request(messaging.server_id, ASK, b"", ANSWER, PATIENCE)


def test_opening_while_another_thread_closes(config: Config, peer: Peer) -> None:
    """The new context waits for the old one to be gone: it never shares the files of one that is closing."""
    if config.messaging_type == "tdb":
        return
    for _ in range(20):
        messaging = Messaging(config)
        fill(messaging, peer.server_id)
        with ThreadPoolExecutor(2) as pool:
            closing = pool.submit(messaging.close, 0.05)
            opened = pool.submit(Messaging, config).result(PATIENCE)
            closing.result(PATIENCE)
        opened.send(opened.server_id, ASK)
        assert os.path.exists(f"{config.lock_directory}/msg.lock/{os.getpid()}")
        opened.close(timeout=0)


def send_to_the_bound(messaging: Messaging, dst: ServerID) -> None:
    while True:
        messaging.send(dst, TEXT, bytes(900))


def test_waiting_for_room_sleeps(config: Config, start: StartPeer) -> None:
    """A wake-up that is for the next dispatch does not keep a thread that waits for room awake."""
    peer = start()
    with Messaging(config.replace(send_queue_messages=50)) as messaging:
        with pytest.raises(QueueFull):
            send_to_the_bound(messaging, peer.server_id)
        messaging._endpoint.backend.wake()

        def wait() -> float:
            began = time.thread_time()
            with pytest.raises(QueueFull):
                messaging.send(peer.server_id, TEXT, bytes(900), timeout=1)
            return time.thread_time() - began

        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(wait).result() < 0.2
        assert messaging.dispatch() == 0
