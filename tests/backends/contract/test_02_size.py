# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 2, size: messages up to `max message size` arrive whole; larger ones are refused before anything is sent."""

from __future__ import annotations

import hashlib
import os

import pytest

from msgd import MessageTooLarge, MessageType, Messaging
from tests.backends.conftest import MakeConfig, StartPeer
from tests.support.harness import TEXT, Peer, Session, drain, serve, take, take_data

MAX = 16 << 20
SIZES = [0, 1, 963, 964, 965, 1016, 1024, 2500, 1 << 20, MAX]
"""Sizes around each limit of Samba's datagrams (964 bytes of data fill one), and the default maximum."""


def take_digest(session: Session) -> tuple[int, str]:
    """Length and checksum of the next message."""
    data = take(session, 1)[0].data
    return len(data), hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", SIZES)
def test_arrives_whole(messaging: Messaging, peer: Peer, size: int) -> None:
    data = os.urandom(size)
    peer.begin(take_digest)
    messaging.send(peer.server_id, TEXT, data)
    drain(messaging)
    assert peer.hear() == (size, hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("size", [0, 964, 965, 2500, 1 << 20])
def test_there_and_back(messaging: Messaging, peer: Peer, size: int) -> None:
    peer.begin(serve)
    data = os.urandom(size)
    answer = messaging.request(peer.server_id, MessageType.PING, data, MessageType.PONG)
    assert answer.data == data
    assert answer.src == peer.server_id


@pytest.mark.parametrize("size", [MAX + 1, MAX + 1024])
def test_too_large(messaging: Messaging, peer: Peer, size: int) -> None:
    with pytest.raises(MessageTooLarge, match=rf"{size} bytes.*{MAX}"):
        messaging.send(peer.server_id, TEXT, bytes(size))
    assert messaging.statistics().sent == 0
    messaging.send(peer.server_id, TEXT, b"after")
    assert peer.call(take_data, 1) == [b"after"]


def test_configured_maximum(make_config: MakeConfig, start: StartPeer) -> None:
    config = make_config(max_message_size=5000)
    peer = start(config)
    with Messaging(config) as messaging:
        peer.begin(take_data, 1)
        messaging.send(peer.server_id, TEXT, bytes(5000))
        drain(messaging)
        assert peer.hear() == [bytes(5000)]
        with pytest.raises(MessageTooLarge):
            messaging.send(peer.server_id, TEXT, bytes(5001))


@pytest.mark.parametrize("size", [0, 964, 965, 2500, 1 << 20])
def test_to_oneself(messaging: Messaging, size: int) -> None:
    received: list[bytes] = []
    messaging.register(TEXT, lambda message: received.append(message.data))
    data = os.urandom(size)
    messaging.send(messaging.server_id, TEXT, data)
    while not received:
        messaging.dispatch(None)
    assert received == [data]


def test_sixty_to_oneself(messaging: Messaging) -> None:
    """More messages than the kernel's queue holds."""
    received: list[bytes] = []
    messaging.register(TEXT, lambda message: received.append(message.data))
    for number in range(60):
        messaging.send(messaging.server_id, TEXT, b"%d" % number)
    while len(received) < 60:
        assert messaging.dispatch(None)
    assert received == [b"%d" % number for number in range(60)]
