# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 12: a process reaches more destinations than it may have open descriptors."""

from __future__ import annotations

import resource

import pytest

from msgd import Messaging
from msgd.backends.sockets import cached_destinations
from tests.backends.conftest import StartPeer
from tests.support.harness import TEXT, Channel, Child, Peer, take_data

LIMIT = 64
PEERS = 40


@pytest.mark.parametrize(
    ("allowed", "each", "cached"),
    [(1024, 1, 256), (1024, 3, 170), (64, 3, 10), (16, 3, 2), (3, 3, 1), (1 << 20, 3, 256)],
)
def test_cached_destinations(monkeypatch: pytest.MonkeyPatch, allowed: int, each: int, cached: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (allowed, allowed))
    assert cached_destinations(each) == cached


def broadcast_with_few_descriptors(peers: list[Peer], channel: Channel) -> None:
    for peer in peers:
        peer.channel.close()  # inherited descriptors
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    config = channel.recv()
    with Messaging(config) as messaging:
        results = [messaging.send_all(TEXT, text) for text in (b"first", b"second")]
        channel.send([(result.delivered, dict(result.failures)) for result in results])
        channel.recv()


def test_more_destinations_than_descriptors(config: object, start: StartPeer) -> None:
    peers = [start() for _ in range(PEERS)]
    with Child(lambda channel: broadcast_with_few_descriptors(peers, channel)) as sender:
        sender.tell(config)
        assert sender.hear() == [(PEERS, {})] * 2
        for peer in peers:
            assert peer.call(take_data, 2) == [b"first", b"second"]
        sender.tell("end")
