# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Delivery: the compiled twin runs the same handlers for the same messages, and counts them alike."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd import Message, Messaging, ServerID
from msgd.messaging import handlers
from msgd.native import native
from msgd.wire.message_types import PUBSUB_BLOCK, MessageClass

MESSAGING_TYPES = ("stream",)

PUBLICATION = PUBSUB_BLOCK << 8
LISTENED = (MessageClass.ALL, MessageClass.PUBSUB, MessageClass.ALL | MessageClass.PUBSUB, MessageClass(0))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Without the log of each handler that fails; the level is everybody's, so it is set back."""
    logger = logging.getLogger("msgd")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


def ran(messaging: Messaging, messages: list[Message]) -> object:
    """What the handlers of four types see of the messages, and how the counters change."""
    delivery = messaging._endpoint.delivery
    delivery.received = delivery.received_bytes = delivery.handled = delivery.handler_errors = 0
    messaging._endpoint.drops.counts.clear()
    calls: list[object] = []

    def raising(message: Message) -> None:
        calls.append(("raising", message))
        raise ValueError

    registered = [
        messaging.register(1000, lambda message: calls.append(("first", message))),
        messaging.register(1000, lambda message: calls.append(("second", message))),
        messaging.register(1001, raising),
        messaging.register(1001, lambda message: calls.append(("behind", message))),
        messaging.register(PUBLICATION, lambda message: calls.append(("published", message))),
    ]
    delivery.run(deque(messages))
    for one in registered:
        one.close()
    counters = delivery.received, delivery.received_bytes, delivery.handled, delivery.handler_errors
    return calls, counters, dict(messaging._endpoint.drops.counts)


@given(st.data())
def test_same_as_python(messaging: Messaging, data: st.DataObject) -> None:
    me = messaging.server_id
    dsts = [me, me, me, me._replace(unique_id=0), me._replace(unique_id=3), me._replace(pid=1), me._replace(task_id=7)]
    messages = st.builds(
        Message,
        st.sampled_from([1000, 1001, 1002, PUBLICATION]),
        st.just(ServerID(1)),
        st.sampled_from([*dsts, me._replace(task_id=0xFFFFFFFF)]),
        st.binary(max_size=9),
        st.just(()),
    )
    inbox = data.draw(st.lists(messages, max_size=9))
    messaging.listen(data.draw(st.sampled_from(LISTENED)))
    compiled = ran(messaging, inbox)
    with mock.patch.object(handlers, "_run_plain", None):
        assert compiled == ran(messaging, inbox)


def test_broadcast_where_several_listen(messaging: Messaging) -> None:
    """Each listener has it once, with one context and with several, of which one listens or both."""
    calls: list[str] = []
    messaging.register(1000, lambda message: calls.append("first"))
    with Messaging(messaging.config, listens=MessageClass.PUBSUB) as other:
        for kind in (1000, PUBLICATION):
            other.register(kind, lambda message: calls.append("other"))
        to_all = messaging.server_id._replace(task_id=0xFFFFFFFF)
        broadcasts = [Message(kind, ServerID(1), to_all, b"", ()) for kind in (1000, PUBLICATION)]
        messaging._endpoint.delivery.run(deque(broadcasts))
        assert calls == ["first", "other"]
        other.listen(MessageClass.ALL)
        messaging._endpoint.delivery.run(deque(broadcasts[:1]))
        assert sorted(calls[2:]) == ["first", "other"]


def test_interrupt_leaves_the_rest(messaging: Messaging) -> None:
    """A BaseException comes out; the message at hand is out of the inbox, and those behind it are in it."""

    def interrupted(message: Message) -> None:
        raise KeyboardInterrupt

    with messaging.register(1000, interrupted):
        inbox = deque([Message(1000, ServerID(1), messaging.server_id, b"%d" % number) for number in range(3)])
        with pytest.raises(KeyboardInterrupt):
            messaging._endpoint.delivery.run(inbox)
    assert [message.data for message in inbox] == [b"1", b"2"]


def test_handler_that_delivers(messaging: Messaging) -> None:
    """A handler may run the same inbox itself, as a nested dispatch does."""
    got: list[bytes] = []
    inbox = deque([Message(1000, ServerID(1), messaging.server_id, b"%d" % number) for number in range(4)])

    def nested(message: Message) -> None:
        got.append(message.data)
        messaging._endpoint.delivery.run(inbox)

    with messaging.register(1000, nested):
        messaging._endpoint.delivery.run(inbox)
    assert got == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("arguments", [(), (1,), (1, 2), (1, deque())])
def test_wrong_arguments(arguments: tuple[object, ...]) -> None:
    with pytest.raises(TypeError):
        native.Deliverer(handlers.Delivery, handlers.HandlerTable, Message, ServerID).run(*arguments)
    with pytest.raises(TypeError):
        native.Deliverer(*arguments)
