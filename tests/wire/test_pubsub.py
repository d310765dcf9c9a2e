# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The formats of publications: what goes in comes out, and any bytes are read or refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd.errors import MalformedMessage
from msgd.wire.message_types import MessageClass, message_class
from msgd.wire.pubsub import (
    ACK,
    ASK,
    CHECK,
    HEADER_SIZE,
    PUBLISH,
    TOPIC_MAX,
    TOPICS,
    Ack,
    Kind,
    Numbers,
    Outcome,
    pack_ack,
    pack_data,
    pack_members,
    pack_numbers,
    pack_publish,
    pack_topics,
    topic_bytes,
    unpack_ack,
    unpack_members,
    unpack_numbers,
    unpack_publish,
    unpack_topics,
)


def test_only_subscribers_listen_to_the_class_of_the_types() -> None:
    assert {message_class(one) for one in (PUBLISH, ACK, CHECK, ASK, TOPICS)} == {MessageClass.PUBSUB}
    assert MessageClass.PUBSUB not in MessageClass.ALL


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\xff", "", "grün", None, True, 7, 2.5, [1, "two", None], {"key": {"deep": []}}],
    ids=repr,
)
def test_data_comes_out_as_it_went_in(data: Any) -> None:
    packed = pack_publish(3, 2**64 - 1, 9, topic_bytes("prices.eur"), *pack_data(data))
    publication = unpack_publish(packed)
    assert publication[:4] == (3, 2**64 - 1, 9, "prices.eur")
    assert publication.data() == data
    assert type(publication.data()) is type(data)


def test_buffers_arrive_as_bytes() -> None:
    assert pack_data(bytearray(b"one")) == pack_data(memoryview(b"one")) == (Kind.BYTES, b"one")


@pytest.mark.parametrize("data", [object(), {1, 2}, float("nan"), "\ud800"], ids=["object", "set", "nan", "surrogate"])
def test_what_json_cannot_say_is_refused(data: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        pack_data(data)


@pytest.mark.parametrize("topic", ["", "a*", "a?", "a\nb", "x" * (TOPIC_MAX + 1), "\ud800"])
def test_what_cannot_be_a_topic_is_refused(topic: str) -> None:
    with pytest.raises(ValueError, match=r"topic|surrogates"):
        topic_bytes(topic)


def test_a_topic_is_text() -> None:
    with pytest.raises(TypeError, match="bytes"):
        topic_bytes(b"a")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\1" * (HEADER_SIZE - 1),
        b"\2" + pack_publish(0, 0, 1, b"a", Kind.BYTES, b"")[1:],
        b"\1\3" + pack_publish(0, 0, 1, b"a", Kind.BYTES, b"")[2:],
        pack_publish(0, 0, 1, b"", Kind.BYTES, b"data"),
        pack_publish(0, 0, 1, b"long", Kind.BYTES, b"")[:-1],
        pack_publish(0, 0, 1, b"\xff", Kind.BYTES, b""),
        pack_publish(0, 0, 1, b"x" * (TOPIC_MAX + 1), Kind.BYTES, b""),
    ],
)
def test_a_bad_publication_is_refused(bad: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack_publish(bad)


@pytest.mark.parametrize("payload", [b"{", b"\xff", b"[" * 100_000, b"1" * 10_000], ids=["{", "ff", "deep", "digits"])
def test_bad_json_is_refused_when_it_is_read(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack_publish(pack_publish(0, 0, 1, b"a", Kind.JSON, payload)).data()


def test_acknowledgements_and_lists_of_topics() -> None:
    ack = Ack(Outcome.FAILED, 3, "ValueError: ä")
    assert unpack_ack(pack_ack(ack)) == ack
    assert len(unpack_ack(pack_ack(Ack(Outcome.FAILED, 0, "ä" * 5000))).text) == 500
    assert unpack_topics(pack_topics(["a.*", "b"])) == ["a.*", "b"]


@pytest.mark.parametrize("bad", [b"{}", b"[1]", b"[", b"\xff", b"[" * 100_000])
def test_a_bad_list_of_topics_is_refused(bad: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack_topics(bad)


def test_what_nodes_tell_each_other() -> None:
    numbers = Numbers(7, 2.5, {0: 1, 9: 1 << 60})
    assert unpack_numbers(pack_numbers(numbers), 10) == numbers
    assert unpack_numbers(pack_numbers(Numbers(7, 1e30, {})), 10).quiet > 1e15
    assert unpack_members(pack_members([(1, 2), (4711, 1 << 63)])) == [(1, 2), (4711, 1 << 63)]


@pytest.mark.parametrize(
    "bad",
    [
        pack_numbers(Numbers(7, 0, {10: 1})),
        pack_numbers(Numbers(7, 0, dict.fromkeys(range(11), 1))),
        pack_numbers(Numbers(7, 0, {1: 1}))[:-1],
        b"\2" + pack_numbers(Numbers(7, 0, {}))[1:],
    ],
    ids=["slot", "count", "short", "version"],
)
def test_bad_numbers_are_refused(bad: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack_numbers(bad, 10)


@pytest.mark.parametrize("bad", [pack_members([(0, 1)]), pack_members([(1 << 40, 1)]), pack_members([(1, 1)]) + b"x"])
def test_a_bad_list_of_subscribers_is_refused(bad: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack_members(bad)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for unpack in (
        lambda: unpack_publish(data).data(),
        lambda: unpack_ack(data),
        lambda: unpack_topics(data),
        lambda: unpack_numbers(data, 1024),
        lambda: unpack_members(data),
    ):
        with contextlib.suppress(MalformedMessage):
            unpack()
