# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A plain send: the same message as its twin sends, or no effect at all."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd import Message, Messaging, SendStatus, ServerID
from tests.backends.conftest import MakeConfig
from tests.support.harness import dispatch_until

TYPE = 0xF123

numbers = st.one_of(st.integers(-2, 3), st.integers(0, 1 << 65), st.sampled_from([TYPE, 0x7FFFFFFF, 0xFFFFFFFF]))
odd = st.one_of(
    st.none(), st.text(), st.binary(), numbers, st.floats(), st.tuples(numbers), st.builds(bytearray), st.just(True)
)
odd_addresses = st.builds(lambda fields: tuple.__new__(ServerID, fields), st.lists(st.one_of(numbers, odd), max_size=6))


def plain_sender(messaging: Messaging) -> Any:
    sender = messaging._endpoint.plain_sender
    assert sender is not None
    return sender


def collect(messaging: Messaging) -> list[Message]:
    got: list[Message] = []
    messaging.register(TYPE, got.append)
    return got


@given(st.lists(st.binary(max_size=5000), max_size=6))
def test_same_message_as_its_twin(messaging: Messaging, texts: list[bytes]) -> None:
    """To itself: both ways, the same bytes arrive in the same order."""
    got = collect(messaging)
    endpoint, me = messaging._endpoint, messaging.server_id
    for data in texts:
        messaging.send(me, TYPE, data)
        endpoint.send(me, me, TYPE, data)
    dispatch_until(messaging, lambda: len(got) == 2 * len(texts))
    messaging.deregister(TYPE)
    assert got[::2] == got[1::2]
    assert [message.data for message in got[::2]] == texts
    assert all(message.src == me and message.dst == me and not message.fds for message in got)


def test_plain_sends_are_counted(messaging: Messaging) -> None:
    got = collect(messaging)
    for number in range(5):
        messaging.send(messaging.server_id, TYPE, bytes(number))
        dispatch_until(messaging, lambda: len(got) == number + 1)  # noqa: B023
    statistics = messaging.statistics()
    assert (statistics.sent, statistics.sent_bytes) == (5, 10)
    assert plain_sender(messaging).sent >= 2  # not the first, which finds the destination; with tdb one more


@given(st.one_of(odd, odd_addresses), st.one_of(odd, odd_addresses), odd, odd)
def test_odd_arguments_have_no_effect(messaging: Messaging, dst: Any, src: Any, kind: Any, data: Any) -> None:
    me = messaging.server_id
    sender = plain_sender(messaging)
    messaging.send(me, TYPE, b"")  # the destination is known
    for arguments in ((dst, src, kind, data), (me, me, kind, data), (me, src, TYPE, data), (dst, me, TYPE, b"x")):
        before = sender.sent
        status = sender(*arguments, messaging.known_tasks)
        assert status is None or isinstance(status, SendStatus)
        assert (status is None) == (sender.sent == before)
    got = collect(messaging)
    messaging.dispatch()
    messaging.deregister(TYPE)
    assert all(isinstance(message.data, bytes) for message in got)


@pytest.mark.parametrize("count", [0, 4, 6])
def test_wrong_number_of_arguments(messaging: Messaging, count: int) -> None:
    with pytest.raises(TypeError):
        plain_sender(messaging)(*[messaging.server_id] * count)


def test_lock_of_another_thread(messaging: Messaging) -> None:
    """While another thread is in a step of its own, the send is left to the twin, which waits."""
    for _ in range(2):  # now it is plain: tdb gives a grant with the first
        messaging.send(messaging.server_id, TYPE, b"")
        messaging.dispatch()
    sender, held, done = plain_sender(messaging), threading.Event(), threading.Event()

    def hold() -> None:
        with messaging._endpoint.lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert sender(messaging.server_id, messaging.server_id, TYPE, b"x", messaging.known_tasks) is None
    finally:
        done.set()
        thread.join()
    assert sender(messaging.server_id, messaging.server_id, TYPE, b"x", messaging.known_tasks) is not None


def test_closed_endpoint(make_config: MakeConfig) -> None:
    messaging = Messaging(make_config())
    me = messaging.server_id
    messaging.send(me, TYPE, b"")
    sender = plain_sender(messaging)
    messaging.close()
    assert messaging._endpoint.plain_sender is None
    assert sender(me, me, TYPE, b"x", messaging.known_tasks) is None


def test_endpoint_is_collected(make_config: MakeConfig) -> None:
    """The sender refers to the endpoint's parts, and they to it: the collector sees through that."""
    messaging = Messaging(make_config())
    messaging.send(messaging.server_id, TYPE, b"")
    messaging.close()
    backend = weakref.ref(messaging._endpoint.backend)
    del messaging
    gc.collect()
    assert backend() is None


def test_smaller_maximum(make_config: MakeConfig) -> None:
    from msgd import MessageTooLarge

    with Messaging(make_config(max_message_size=1024)) as messaging:
        messaging.send(messaging.server_id, TYPE, bytes(1024))
        messaging.send(messaging.server_id, TYPE, bytes(1024))
        with pytest.raises(MessageTooLarge):
            messaging.send(messaging.server_id, TYPE, bytes(1025))
