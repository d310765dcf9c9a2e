# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Contexts: handlers, identities, several in a process, request and broadcast, and their end."""

from __future__ import annotations

import os

import pytest

from msgd import (
    Config,
    ContextClosed,
    Message,
    MessageType,
    Messaging,
    NoSuchProcess,
    QueueFull,
    ReplyTimeout,
    ServerID,
)
from tests.backends.conftest import MakeConfig, StartPeer
from tests.support.harness import (
    PATIENCE,
    TEXT,
    Peer,
    Session,
    close,
    dispatch_until,
    fill,
    is_gone,
    no_fd_leaks,
    serve,
    take_data,
)


def test_identity(config: Config) -> None:
    with Messaging(config) as first, Messaging(config) as second, Messaging(config, task_id=40) as other:
        assert first.server_id.pid == os.getpid()
        assert [one.server_id.task_id for one in (first, second, other)] == [0, 1, 40]
        assert len({one.server_id.unique_id for one in (first, second, other)}) == 1
        first.close()
        with Messaging(config) as lowest_free:
            assert lowest_free.server_id.task_id == 0
    with Messaging(config) as again:
        assert again.server_id.unique_id != first.server_id.unique_id


@pytest.mark.parametrize("task_id", [0, -1, 1 << 32])
def test_task_ids_that_do_not_go(config: Config, task_id: int) -> None:
    with Messaging(config), pytest.raises(ValueError, match=r"task id"):
        Messaging(config, task_id=task_id)


@pytest.mark.parametrize("task_id", [-1, 1 << 32])
def test_refused_task_id_leaves_nothing_open(config: Config, task_id: int) -> None:
    with no_fd_leaks():
        with pytest.raises(ValueError, match=r"task id"):
            Messaging(config, task_id=task_id)
        with Messaging(config) as messaging:
            assert messaging.server_id.task_id == 0


def test_dispatch_serves_all_contexts_of_the_process(config: Config) -> None:
    received: list[tuple[int, bytes]] = []
    with Messaging(config) as first, Messaging(config) as second:
        first.register(TEXT, lambda message: received.append((0, message.data)))
        second.register(TEXT, lambda message: received.append((1, message.data)))
        first.send(second.server_id, TEXT, b"a")
        second.send(first.server_id, TEXT, b"b")
        first.send(first.server_id, TEXT, b"c")
        assert second.dispatch() == 3
        assert received == [(1, b"a"), (0, b"b"), (0, b"c")]
        first.close()
        second.send(second.server_id, TEXT, b"d")
        assert second.dispatch() == 1
        second.send(first.server_id, TEXT, b"to a task that is gone")
        assert second.dispatch() == 0
        assert sum(second.statistics().drops.values()) == 1


def test_closed_context(config: Config) -> None:
    messaging = Messaging(config)
    messaging.close()
    assert messaging.close() == 0
    for use in (messaging.dispatch, messaging.fileno, messaging.statistics, messaging.processes, messaging.reinit):
        with pytest.raises(ContextClosed):
            use()
    with pytest.raises(ContextClosed):
        messaging.send(messaging.server_id, TEXT)
    with pytest.raises(ContextClosed):
        messaging.register(TEXT, print)


def test_nothing_is_left_open(config: Config, peer: Peer) -> None:
    with no_fd_leaks():
        for _ in range(3):
            with Messaging(config) as messaging:
                messaging.send(peer.server_id, TEXT, bytes(1500))
                messaging.is_alive(peer.server_id)
                messaging.processes()
                messaging.clean_up()
    assert peer.call(take_data, 3) == [bytes(1500)] * 3


# Handlers


def test_several_handlers_of_a_type(messaging: Messaging) -> None:
    calls: list[str] = []

    def first(message: Message) -> None:
        calls.append("first")

    def second(message: Message) -> None:
        calls.append("second")

    messaging.register(TEXT, first)
    messaging.register(TEXT, second)
    messaging.send(messaging.server_id, TEXT)
    assert messaging.dispatch() == 1
    messaging.deregister(TEXT, first)
    messaging.send(messaging.server_id, TEXT)
    assert messaging.dispatch() == 1
    assert calls == ["first", "second", "second"]
    messaging.deregister(TEXT)
    messaging.send(messaging.server_id, TEXT)
    assert messaging.dispatch() == 0
    assert sum(messaging.statistics().drops.values()) == 1


def test_handler_that_deregisters_itself(messaging: Messaging) -> None:
    calls: list[bytes] = []

    def once(message: Message) -> None:
        calls.append(message.data)
        messaging.deregister(TEXT, once)

    def always(message: Message) -> None:
        calls.append(b"always")

    messaging.register(TEXT, once)
    messaging.register(TEXT, always)
    for text in (b"one", b"two"):
        messaging.send(messaging.server_id, TEXT, text)
    assert messaging.dispatch() == 2
    assert calls == [b"one", b"always", b"always"]


def test_handler_that_closes_the_context(config: Config, peer: Peer) -> None:
    """dispatch comes back; the messages behind are not handled."""
    calls: list[bytes] = []
    messaging = Messaging(config)

    def last(message: Message) -> None:
        calls.append(message.data)
        messaging.close()

    messaging.register(TEXT, last)
    for text in (b"one", b"two"):
        messaging.send(messaging.server_id, TEXT, text)
    assert messaging.dispatch(None) == 1
    assert calls == [b"one"]
    with Messaging(config) as other:
        other.send(peer.server_id, TEXT, b"next")
        assert peer.call(take_data, 1) == [b"next"]


def test_large_message_whose_handler_closes_the_context(config: Config) -> None:
    with no_fd_leaks():
        messaging = Messaging(config)
        undelivered: list[int] = []
        messaging.register(TEXT, lambda message: undelivered.append(messaging.close()))
        messaging.send(messaging.server_id, TEXT, bytes(1500))
        assert messaging.dispatch(None) == 1


def test_handler_that_sends_to_itself(messaging: Messaging) -> None:
    """Each message brings about the next: no recursion, no endless dispatch."""
    received: list[int] = []

    def again(message: Message) -> None:
        number = int(message.data)
        received.append(number)
        if number < 2000:
            messaging.send(messaging.server_id, TEXT, b"%d" % (number + 1))

    messaging.register(TEXT, again)
    messaging.send(messaging.server_id, TEXT, b"0")
    dispatch_until(messaging, lambda: len(received) > 2000)
    assert received == list(range(2001))


def test_flood_does_not_keep_dispatch(messaging: Messaging) -> None:
    """A handler that always sends one more message to its own process cannot hold a dispatch for ever."""
    messaging.register(TEXT, lambda message: messaging.send(messaging.server_id, TEXT) and None)
    messaging.send(messaging.server_id, TEXT)
    for _ in range(3):
        assert messaging.dispatch() > 0


def test_handler_that_dispatches(messaging: Messaging) -> None:
    received: list[bytes] = []

    def nested(message: Message) -> None:
        received.append(message.data)
        messaging.dispatch()

    messaging.register(TEXT, nested)
    for text in (b"one", b"two", b"three"):
        messaging.send(messaging.server_id, TEXT, text)
    messaging.dispatch()
    assert received == [b"one", b"two", b"three"]


def test_own_ping_handler(messaging: Messaging, peer: Peer) -> None:
    """A registered handler stands in for the answer that PING has by itself."""
    peer.begin(serve)
    assert messaging.request(peer.server_id, MessageType.PING, b"x", MessageType.PONG).data == b"x"
    messaging.register(MessageType.PING, lambda message: messaging.reply(message, MessageType.PONG, b"my own"))
    assert messaging.request(messaging.server_id, MessageType.PING, b"x", MessageType.PONG).data == b"my own"
    messaging.deregister(MessageType.PING)
    assert messaging.request(messaging.server_id, MessageType.PING, b"x", MessageType.PONG).data == b"x"


def test_message_types(messaging: Messaging) -> None:
    received: list[int] = []
    types = [0, 1 << 16, 0x7FFFFFFF]
    for message_type in types:
        messaging.register(message_type, lambda message: received.append(message.type))
        messaging.send(messaging.server_id, message_type)
    assert messaging.dispatch() == 3
    assert received == types
    for message_type in (-1, 1 << 32):
        with pytest.raises(ValueError, match=r"message type"):
            messaging.send(messaging.server_id, message_type)
        with pytest.raises(ValueError, match=r"message type"):
            messaging.register(message_type, print)


@pytest.mark.parametrize("dst", ["", "x", "12x", "1/2/3", "99999999999", "1.99999999999", -4, 0])
def test_destinations_that_are_none(messaging: Messaging, dst: str | int) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        messaging.send(dst, TEXT)


@pytest.mark.parametrize("bad", [{"task_id": -1}, {"task_id": 1 << 32}])
def test_server_ids_that_do_not_fit(messaging: Messaging, bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"task"):
        messaging.send(ServerID(os.getpid(), **bad), TEXT)


# Request and broadcast


def test_request_runs_other_handlers(messaging: Messaging, peer: Peer) -> None:
    received: list[bytes] = []
    messaging.register(TEXT, lambda message: received.append(message.data))
    messaging.send(messaging.server_id, TEXT, b"meanwhile")
    peer.begin(serve)
    messaging.request(peer.server_id, MessageType.PING, b"", MessageType.PONG)
    assert received == [b"meanwhile"]


def test_request_takes_the_answer_of_the_process_asked_only(messaging: Messaging, start: StartPeer) -> None:
    asked, other = start(), start()
    other.call(send_pong, messaging.server_id)
    asked.begin(serve)
    answer = messaging.request(asked.server_id, MessageType.PING, b"right", MessageType.PONG)
    assert (answer.src, answer.data) == (asked.server_id, b"right")


def send_pong(session: Session, dst: ServerID) -> None:
    session.messaging.send(dst, MessageType.PONG, b"wrong")


def test_request_without_answer(messaging: Messaging, peer: Peer) -> None:
    messaging.send(peer.server_id, TEXT, b"keeps a connection")
    with no_fd_leaks(), pytest.raises(ReplyTimeout, match=rf"{peer.pid}.*PING.*0.05 seconds"):
        messaging.request(peer.server_id, MessageType.PING, b"", MessageType.PONG, timeout=0.05)
    assert messaging.statistics().drops == {}


def test_request_of_nobody(messaging: Messaging, peer: Peer) -> None:
    peer.call(close)
    with no_fd_leaks(), pytest.raises(NoSuchProcess):
        messaging.request(peer.server_id, MessageType.PING, b"", MessageType.PONG)


def test_request_within_a_handler(messaging: Messaging, peer: Peer) -> None:
    answers: list[bytes] = []

    def ask(message: Message) -> None:
        answers.append(messaging.request(peer.server_id, MessageType.PING, b"inner", MessageType.PONG).data)

    peer.begin(serve)
    messaging.register(TEXT, ask)
    messaging.send(messaging.server_id, TEXT)
    messaging.send(messaging.server_id, TEXT)
    dispatch_until(messaging, lambda: len(answers) == 2)
    assert answers == [b"inner", b"inner"]


def test_reply_to_an_asker_that_is_gone(messaging: Messaging, peer: Peer) -> None:
    peer.call(send_ping, messaging.server_id)
    peer.kill()
    assert messaging.dispatch(None) == 1
    assert sum(messaging.statistics().drops.values()) == 1
    assert messaging.statistics().handler_errors == 0


def send_ping(session: Session, dst: ServerID) -> None:
    session.messaging.send(dst, MessageType.PING, b"")


def test_send_all(messaging: Messaging, start: StartPeer) -> None:
    peers, dead = [start() for _ in range(3)], start()
    dead.kill()
    result = messaging.send_all(TEXT, b"to all")
    assert result.delivered == 3
    assert result.failures == {}
    for peer in peers:
        assert peer.call(take_data, 1) == [b"to all"]
    assert messaging.dispatch() == 0, "the sender is not of those it sends to"


def test_send_all_tells_who_did_not_take_it(make_config: MakeConfig, start: StartPeer) -> None:
    peers = [start() for _ in range(2)]
    with Messaging(make_config(send_queue_messages=1, close_timeout=0)) as messaging:
        with pytest.raises(QueueFull):
            fill(messaging, peers[0].server_id)
        result = messaging.send_all(TEXT, b"to all")
        assert result.delivered == 1
        assert list(result.failures) == [peers[0].pid]
        assert "does not read" in str(result.failures[peers[0].pid])
        assert peers[1].call(take_data, 1) == [b"to all"]


def test_dispatch_with_timeout(messaging: Messaging) -> None:
    assert messaging.dispatch(0.01) == 0
    messaging.register(TEXT, lambda message: None)
    messaging.send(messaging.server_id, TEXT)
    assert messaging.dispatch(None) == 1


def test_data_may_be_any_bytes_like(messaging: Messaging, peer: Peer) -> None:
    data = bytearray(b"changes after the call" * 100)
    for one in (data, memoryview(data), bytes(data)):
        messaging.send(peer.server_id, TEXT, one)
    data[:7] = b"changed"
    with pytest.raises(TypeError):
        messaging.send(peer.server_id, TEXT, "text")  # type: ignore[arg-type]
    assert peer.call(take_data, 3) == [b"changes after the call" * 100] * 3
    assert not is_gone(messaging, peer.pid)


def test_process_with_another_messaging_type(config: Config, make_config: MakeConfig, start: StartPeer) -> None:
    """It is there, and the error says how it is reached."""
    other = "stream" if config.messaging_type == "dgram" else "dgram"
    peer = start(make_config(messaging_type=other))
    with Messaging(config) as messaging:
        with pytest.raises(NoSuchProcess, match=f"uses messaging type {other}; here messaging type = "):
            messaging.send(peer.server_id, TEXT)
        result = messaging.send_all(TEXT)
        assert not result
        assert set(result.failures) == {peer.pid}


def test_send_to_a_task_that_is_not_there(messaging: Messaging, peer: Peer) -> None:
    """A pid that lives and a task id that is wrong: told at once, nothing sent."""
    messaging.send(peer.server_id, TEXT, b"right")
    with pytest.raises(NoSuchProcess, match="no such task") as caught:
        messaging.send(peer.server_id._replace(task_id=7), TEXT, b"wrong")
    assert (caught.value.dst, caught.value.type) == (peer.server_id._replace(task_id=7), TEXT)
    assert peer.call(take_data, 1) == [b"right"]
    assert messaging.statistics().sent == 1


others: list[Messaging] = []
"""The further contexts of a peer."""


def open_another(session: Session) -> ServerID:
    others.append(Messaging(session.messaging.config, task_id=7))
    return others[0].server_id


def close_another(session: Session) -> int:
    """Close it, and take what still comes for it.  Returns how many messages were for nobody."""
    others[0].close()
    dispatch_until(session.messaging, lambda: bool(session.messaging.statistics().drops))
    return sum(session.messaging.statistics().drops.values())


def send_and_dispatch(messaging: Messaging, dst: ServerID) -> None:
    """Go on until send() raises."""
    while True:
        messaging.send(dst, TEXT)
        messaging.dispatch(PATIENCE)


def test_send_to_a_task_that_has_closed(messaging: Messaging, peer: Peer) -> None:
    """A context that opens late is found; once it has closed, the first message to it makes the next one raise."""
    with pytest.raises(NoSuchProcess, match="no such task"):
        messaging.send(peer.server_id._replace(task_id=7), TEXT)
    dst = peer.call(open_another)
    messaging.send(dst, TEXT)
    peer.begin(close_another)
    with pytest.raises(NoSuchProcess, match="no such task"):
        send_and_dispatch(messaging, dst)
    assert peer.hear() >= 1
