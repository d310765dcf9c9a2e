# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 9: a raising handler is logged with its message type, and the messages behind it are still handled."""

from __future__ import annotations

import logging
import os

import pytest

from msgd import Message, MessageType, Messaging
from msgd.events import HANDLER_FAILED
from tests.support.harness import TEXT, Peer, Session, dispatch_until, drain, send_many, take_data


def raising(message: Message) -> None:
    raise ZeroDivisionError(f"handling {message.data.decode()}")


def test_error_is_logged_and_other_handlers_run(messaging: Messaging, caplog: pytest.LogCaptureFixture) -> None:
    received: list[bytes] = []
    messaging.register(TEXT, raising)
    messaging.register(TEXT, lambda message: received.append(message.data))
    for text in (b"one", b"two"):
        messaging.send(messaging.server_id, TEXT, text)
    with caplog.at_level(logging.ERROR, "msgd"):
        assert messaging.dispatch() == 2
    assert received == [b"one", b"two"]
    assert messaging.statistics().handler_errors == 2
    assert len(caplog.records) == 2
    for record, name in zip(caplog.records, ("one", "two"), strict=True):
        assert f"{TEXT:#x}" in record.getMessage()
        for_the_journal = {"MESSAGE_ID": HANDLER_FAILED, "MESSAGE_TYPE": f"{TEXT:#x}", "PEER_PID": str(os.getpid())}
        assert for_the_journal.items() <= vars(record).items()
        assert str(messaging.server_id) in record.getMessage()
        assert record.exc_info is not None
        assert str(record.exc_info[1]) == f"handling {name}"


def test_large_messages_too(messaging: Messaging, peer: Peer) -> None:
    received: list[int] = []
    messaging.register(TEXT, raising)
    messaging.register(TEXT, lambda message: received.append(len(message.data)))
    peer.begin(send_many, messaging.server_id, [b"x" * 5000, b"y" * 3, b"z" * 100_000])
    dispatch_until(messaging, lambda: len(received) == 3)
    assert received == [5000, 3, 100_000]
    assert messaging.statistics().handler_errors == 3


def answer_after_raising(session: Session) -> None:
    session.messaging.register(MessageType.DEBUG, raising)
    session.messaging.dispatch(None)


def test_receiver_continues(messaging: Messaging, peer: Peer) -> None:
    messaging.send(peer.server_id, MessageType.DEBUG, b"bad")
    messaging.send(peer.server_id, TEXT, b"good")
    peer.begin(answer_after_raising)
    assert peer.hear() is None
    assert peer.call(take_data, 1) == [b"good"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_out_of_a_handler(messaging: Messaging, error: type[BaseException]) -> None:
    """It leaves dispatch, and only the message that was being handled is gone."""
    received: list[bytes] = []

    def interrupted(message: Message) -> None:
        received.append(message.data)
        if message.data.startswith(b"stop"):
            raise error

    messaging.register(TEXT, interrupted)
    texts = [b"one", b"stop", b"two", b"stop" + bytes(5000), b"three", bytes(5000)]
    for text in texts:
        messaging.send(messaging.server_id, TEXT, text)
    for _ in range(2):
        with pytest.raises(error):
            dispatch_until(messaging, lambda: False)
    dispatch_until(messaging, lambda: len(received) == len(texts))
    assert received == texts
    drain(messaging)
    assert messaging.statistics().handler_errors == 0
