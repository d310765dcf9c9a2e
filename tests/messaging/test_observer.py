# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What an Observer is told of the messages that a context sends, on every way to send."""

from __future__ import annotations

import pytest

from msgd import Config, Messaging, Observer
from tests.backends.conftest import StartPeer
from tests.support.harness import TEXT, drain, take_data


class Sent(Observer):
    """Keeps what was sent."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def sent(self, message_type: int, length: int) -> None:
        self.seen.append((message_type, length))


@pytest.mark.parametrize("number", [1, 3, 100])
def test_send_all_many(config: Config, start: StartPeer, number: int) -> None:
    """Each message once for each process that has taken it; nothing for one that has ended."""
    observer, peers = Sent(), [start() for _ in range(3)]
    messages = [(TEXT, b"x" * length) for length in range(number)]
    with Messaging(config, observer=observer) as messaging:
        for _ in range(2):  # the first opens the connections
            observer.seen.clear()
            assert messaging.send_all_many(messages).delivered == 3
            assert sorted(observer.seen) == sorted(3 * [(TEXT, length) for length in range(number)])
        peers[0].kill()
        observer.seen.clear()
        assert messaging.send_all_many(messages).delivered == 2
        assert sorted(observer.seen) == sorted(2 * [(TEXT, length) for length in range(number)])
        statistics = messaging.statistics()
        assert (statistics.sent, statistics.sent_bytes) == (8 * number, 8 * sum(range(number)))
        for peer in peers[1:]:
            peer.begin(take_data, 3 * number)
        drain(messaging)
        for peer in peers[1:]:
            assert peer.hear() == 3 * [data for _, data in messages]


def test_send_and_send_all(config: Config, start: StartPeer) -> None:
    observer, peers = Sent(), [start() for _ in range(2)]
    with Messaging(config, observer=observer) as messaging:
        messaging.send(peers[0].server_id, TEXT, b"one")
        messaging.send_all(TEXT, b"four")
    assert observer.seen == [(TEXT, 3), (TEXT, 4), (TEXT, 4)]
