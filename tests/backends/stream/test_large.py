"""Long messages are not copied over and over: at most twice in Python on either side, the queued one not at all."""

from __future__ import annotations

import tracemalloc

from msgd import Message, ServerID
from tests.backends.conftest import StartPeer
from tests.support.harness import TEXT, Session

LENGTH = 16 << 20
SMALL = 1 << 20


def peak_of_sending(session: Session, dst: ServerID) -> int:
    """Bytes allocated at most from send() to the answer."""
    data = bytes(LENGTH)
    tracemalloc.start()
    session.messaging.send(dst, TEXT, data)
    session.messaging.dispatch(None)
    return tracemalloc.get_traced_memory()[1]


def peak_of_receiving(session: Session) -> int:
    """Bytes allocated at most until the message, the data included, is in its handler, which answers."""
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
    """More than the socket holds, so most of it is queued."""
    sender, receiver = start(), start()
    sender.begin(peak_of_sending, receiver.server_id)
    receiver.begin(peak_of_receiving)
    assert sender.hear() < SMALL
    assert receiver.hear() < 2 * LENGTH + SMALL
