# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Long messages are copied at most twice in Python by the receiver, and not at all by the sender, even if queued."""

from __future__ import annotations

import tracemalloc

from msgd import Message, ServerID
from tests.backends.conftest import StartPeer
from tests.support.harness import TEXT, Session

LENGTH = 16 << 20
SMALL = 1 << 20


def peak_of_sending(session: Session, dst: ServerID) -> int:
    """The peak of the bytes allocated between send() and the answer."""
    data = bytes(LENGTH)
    tracemalloc.start()
    session.messaging.send(dst, TEXT, data)
    session.messaging.dispatch(None)
    return tracemalloc.get_traced_memory()[1]


def peak_of_receiving(session: Session) -> int:
    """The peak of the bytes allocated until the handler has the message, data included, and has answered."""
    lengths: list[int] = []

    def take(message: Message) -> None:
        lengths.append(len(message.data))
        session.messaging.reply(message, TEXT)

    session.messaging.deregister(TEXT)
    session.messaging.register(TEXT, take)
    tracemalloc.start()
    session.messaging.dispatch(None)
    assert lengths == [LENGTH]
    return tracemalloc.get_traced_memory()[1]


def test_sixteen_mebibytes(start: StartPeer) -> None:
    """The socket holds less than that, so most of the message is queued."""
    sender, receiver = start(), start()
    sender.begin(peak_of_sending, receiver.server_id)
    receiver.begin(peak_of_receiving)
    assert sender.hear() < SMALL
    assert receiver.hear() < 2 * LENGTH + SMALL
