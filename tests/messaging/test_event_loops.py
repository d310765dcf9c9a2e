# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""fileno() is level-triggered: readable while dispatch has something to do, in any kind of loop."""

from __future__ import annotations

import asyncio
import os
import select

import pytest

from msgd import Message, Messaging
from tests.support.harness import PATIENCE, TEXT, Peer, send_many, take_data

NUMBER = 3000


def readable(messaging: Messaging, timeout: float = 0) -> bool:
    return bool(select.select([messaging.fileno()], [], [], timeout)[0])


def test_readable_as_long_as_there_is_something(messaging: Messaging, peer: Peer) -> None:
    received: list[Message] = []
    messaging.register(TEXT, received.append)
    assert not readable(messaging)
    peer.begin(send_many, messaging.server_id, [b"one"])
    assert readable(messaging, PATIENCE)
    assert readable(messaging), "asking does not take it"
    assert messaging.dispatch(PATIENCE) == 1
    assert not readable(messaging)
    assert peer.hear() is None


def test_more_than_a_round_stays_readable(messaging: Messaging, peer: Peer) -> None:
    """A loop that dispatches once each time its selector says so gets everything."""
    received: list[Message] = []
    messaging.register(TEXT, received.append)
    peer.begin(send_many, messaging.server_id, [b"%d" % number for number in range(NUMBER)])
    with select.epoll() as epoll:
        epoll.register(messaging.fileno(), select.EPOLLIN)
        while len(received) < NUMBER:
            assert epoll.poll(PATIENCE) == [(messaging.fileno(), select.EPOLLIN)]
            messaging.dispatch()
    assert peer.hear() is None


def test_poll(messaging: Messaging, peer: Peer) -> None:
    received: list[Message] = []
    messaging.register(TEXT, received.append)
    peer.begin(send_many, messaging.server_id, [b"one", bytes(100_000)])
    poll = select.poll()
    poll.register(messaging.fileno(), select.POLLIN)
    while len(received) < 2:
        assert poll.poll(PATIENCE * 1000)
        messaging.dispatch()
    assert peer.hear() is None


def test_asyncio_reader(messaging: Messaging, peer: Peer) -> None:
    """Receiving and flushing in one callback, with nothing but add_reader."""
    received: list[bytes] = []
    large = os.urandom(200_000)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def collect(message: Message) -> None:
            received.append(message.data)
            if len(received) == NUMBER:
                messaging.send(peer.server_id, TEXT, large)

        def on_readable() -> None:
            messaging.dispatch()
            if len(received) == NUMBER and not messaging.statistics().queued_messages:
                done.set()

        messaging.register(TEXT, collect)
        loop.add_reader(messaging.fileno(), on_readable)
        async with asyncio.timeout(PATIENCE):
            await done.wait()
        loop.remove_reader(messaging.fileno())

    texts = [b"%d" % number for number in range(NUMBER)]
    peer.begin(send_many, messaging.server_id, texts)
    peer.tell((take_data, (1,)))
    asyncio.run(main())
    assert received == texts
    assert peer.hear() is None
    assert peer.hear() == [large]


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_dispatch_of_nothing(messaging: Messaging, timeout: float) -> None:
    assert messaging.dispatch(timeout) == 0
