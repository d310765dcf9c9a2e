# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Messages that handlers send leave together; messages sent outside dispatch leave at once."""

from __future__ import annotations

import fcntl
import struct
import termios
from collections.abc import Sequence

import pytest

from msgd import Message, Messaging, QueueFull, SendStatus, ServerID
from msgd.backends.stream.connection import Connection
from tests.backends.stream.conftest import MakeConfig, StartPeer
from tests.support.harness import TEXT, Session, dispatch_until, take_data


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each write of this process that is not empty."""
    sizes: list[int] = []
    write = Connection.write

    def counting(self: Connection, buffers: Sequence[bytes | memoryview], fds: Sequence[int] = ()) -> int:
        if any(buffers):
            sizes.append(sum(map(len, buffers)))
        return write(self, buffers, fds)

    monkeypatch.setattr(Connection, "write", counting)
    return sizes


def send_texts(session: Session, dst: ServerID, number: int) -> None:
    for one in range(number):
        session.messaging.send(dst, TEXT, b"%03d" % one)


def echo(messaging: Messaging, *, also: ServerID | None = None) -> list[SendStatus]:
    """Answer every message, and copy it to the process `also`; the list receives the status of each answer."""
    answered: list[SendStatus] = []

    def handler(message: Message) -> None:
        answered.append(messaging.send(message.src, TEXT, message.data))
        if also is not None:
            messaging.send(also, TEXT, message.data)

    messaging.register(TEXT, handler)
    return answered


def test_one_write_per_connection_and_round(messaging: Messaging, start: StartPeer, writes: list[int]) -> None:
    peer, third = start(), start()
    answered = echo(messaging, also=third.server_id)
    peer.call(send_texts, messaging.server_id, 50)
    dispatch_until(messaging, lambda: len(answered) == 50)
    assert writes == [50 * 67] * 2
    expected = [b"%03d" % one for one in range(50)]
    assert peer.call(take_data, 50) == expected
    assert third.call(take_data, 50) == expected
    assert set(answered) == {SendStatus.QUEUED}
    assert messaging.statistics().queued_messages == 0


def test_the_only_answer_is_written_at_once(messaging: Messaging, start: StartPeer) -> None:
    """In a round with one message; what follows it to the same process is gathered, and keeps its place."""
    peer, third = start(), start()
    for known in (peer, third):
        messaging.send(known.server_id, TEXT, b"before")
        assert known.call(take_data, 1) == [b"before"]
    statuses: list[SendStatus] = []

    def handler(message: Message) -> None:
        for one in (b"1", b"2", b"3"):
            statuses.extend(messaging.send(dst, TEXT, one) for dst in (peer.server_id, third.server_id))

    messaging.register(TEXT, handler)
    for _ in range(2):
        statuses.clear()
        peer.call(send_texts, messaging.server_id, 1)
        messaging.dispatch(None)
        assert statuses == [SendStatus.SENT] * 2 + [SendStatus.QUEUED] * 4
        assert messaging.statistics().queued_messages == 0
        for known in (peer, third):
            assert known.call(take_data, 3) == [b"1", b"2", b"3"]


def test_at_once_outside_dispatch(messaging: Messaging, start: StartPeer) -> None:
    peer = start()
    unread = [0]
    for _ in range(3):
        assert messaging.send(peer.server_id, TEXT, b"now") is SendStatus.SENT
        unread.append(_bytes_in_flight(messaging))
    assert unread == sorted(set(unread)), "each send is a write of its own"
    assert peer.call(take_data, 3) == [b"now"] * 3


def _bytes_in_flight(messaging: Messaging) -> int:
    """What the kernel holds of this process's writes on its only connection (SIOCOUTQ, unix(7))."""
    (connection,) = messaging._endpoint.backend._pool.by_fd.values()  # type: ignore[attr-defined]
    (number,) = struct.unpack("i", fcntl.ioctl(connection.fd, termios.TIOCOUTQ, bytes(4)))
    assert isinstance(number, int)
    return number


def test_size_bound(make_config: MakeConfig, start: StartPeer, writes: list[int]) -> None:
    peer = start()
    with Messaging(make_config(gather_bytes=1000)) as messaging:
        answered = echo(messaging)
        peer.call(send_texts, messaging.server_id, 50)
        dispatch_until(messaging, lambda: len(answered) == 50)
        assert sum(writes) == 50 * 67
        assert max(writes) == 15 * 67
        assert peer.call(take_data, 50) == [b"%03d" % one for one in range(50)]


def test_long_messages_keep_their_place(messaging: Messaging, start: StartPeer) -> None:
    """A message too long to be gathered neither overtakes the gathered ones nor is overtaken."""
    peer = start()
    texts = [b"a", bytes(70_000), b"b", b"c", bytes(300_000), b"d", bytes(70_000), b"e"]

    def handler(message: Message) -> None:
        for text in texts:
            messaging.send(message.src, TEXT, text)

    messaging.register(TEXT, handler)
    peer.call(send_texts, messaging.server_id, 3)
    messaging.dispatch(None)
    peer.begin(take_data, 3 * len(texts))
    dispatch_until(messaging, lambda: not messaging.statistics().queued_messages)
    assert peer.hear() == texts * 3


def test_queue_is_bounded_inside_handlers_too(make_config: MakeConfig, start: StartPeer) -> None:
    peer = start()
    accepted: list[bytes] = []
    refused: list[bytes] = []
    with Messaging(make_config(send_queue_messages=30)) as messaging:

        def handler(message: Message) -> None:
            for one in range(6000):
                text = b"%d" % one + bytes(3000 if one % 5 else 0)
                try:
                    messaging.send(message.src, TEXT, text)
                    accepted.append(text)
                except QueueFull:
                    refused.append(text)

        messaging.register(TEXT, handler)
        peer.call(send_texts, messaging.server_id, 1)
        messaging.dispatch(None)
        assert refused
        assert messaging.statistics().queued_messages == 30
        peer.begin(take_data, len(accepted))
        dispatch_until(messaging, lambda: not messaging.statistics().queued_messages)
        assert peer.hear() == accepted


def test_merged_while_gathered(messaging: Messaging, start: StartPeer) -> None:
    peer = start()
    statuses: list[SendStatus] = []

    def handler(message: Message) -> None:
        statuses.extend(messaging.send(message.src, TEXT, b"again", duplicates_allowed=False) for _ in range(3))

    messaging.register(TEXT, handler)
    peer.call(send_texts, messaging.server_id, 1)
    messaging.dispatch(None)
    assert statuses == [SendStatus.QUEUED, SendStatus.MERGED, SendStatus.MERGED]
    assert peer.call(take_data, 1) == [b"again"]
