# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""tdb: what the compiled twin makes of a value is what RecordDecoder makes of it alone."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd import Message, ServerID
from msgd.native import native
from msgd.wire import tdb_record
from msgd.wire.header import MessageDecoder
from msgd.wire.tdb_record import (
    RECORD,
    Continuation,
    RecordDecoder,
    Special,
    pack_continuation,
    pack_message,
    pack_segment_start,
)

PID = 4711

addresses = st.builds(
    ServerID, st.sampled_from([PID, PID, 5, 0x7FFFFFFF]), st.integers(0, 0xFFFFFFFF), unique_id=st.integers(0, 1 << 64)
).filter(lambda address: address.unique_id < 1 << 64)
messages = st.builds(
    pack_message,
    st.builds(ServerID, st.just(PID), st.integers(0, 9), unique_id=st.integers(1, 99)),
    addresses,
    st.integers(0, 0x7FFFFFFF),
    st.binary(max_size=100),
)
plain = st.builds(lambda data: pack_message(ServerID(PID), ServerID(5), 1, data), st.binary(max_size=20))
specials = st.one_of(
    st.builds(pack_continuation, st.just(PID), st.builds(Continuation, st.just(5), st.just(6), st.just(7), st.just(8))),
    st.builds(pack_segment_start, st.just(PID), st.just(5), st.integers(0, 99)),
    st.builds(
        lambda head, data: RECORD.pack(*head, len(data)) + data,
        st.tuples(*[st.integers(-9, 9)] * 4),
        st.binary(max_size=30),
    ),
    st.binary(max_size=60),
)


def decoded(value: bytes) -> tuple[list[Message], list[Special]]:
    return RecordDecoder(PID, ServerID).decode(value)


def texts(result: tuple[list[Message], list[Special]]) -> tuple[list[Message], list[str]]:
    """With the complaints as text: two exceptions are never equal."""
    return result[0], [f"{position} {what!r}" for position, what in result[1]]


@given(
    st.lists(st.one_of(messages, messages, messages, plain, specials), max_size=12),
    st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 255)), max_size=4),
)
def test_same_as_decoded(records: list[bytes], damage: list[tuple[int, int]]) -> None:
    value = bytearray(b"".join(records))
    for place, byte in damage:
        if value:
            value[place % len(value)] = byte
    compiled = texts(decoded(bytes(value)))
    with mock.patch.object(tdb_record, "native", None):
        assert compiled == texts(decoded(bytes(value)))


@given(st.integers(0, 80), st.integers(0, 1 << 64))
def test_lying_lengths(cut: int, length: int) -> None:
    whole = pack_message(ServerID(PID, 1), ServerID(5), 1, b"data")
    lying = whole[:64] + (length & (1 << 64) - 1).to_bytes(8, "little") + whole[72:]
    compiled = texts(decoded(lying[:cut]))
    with mock.patch.object(tdb_record, "native", None):
        assert compiled == texts(decoded(lying[:cut]))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (1, 2, 3, 4, 5),
        (MessageDecoder().addresses, PID, [], b"", 1),
        (MessageDecoder().addresses, PID, [], b"", -1),
        (MessageDecoder().addresses, 0, [], b"", 0),
        (MessageDecoder().addresses, 1 << 40, [], b"", 0),
        (MessageDecoder().addresses, PID, (), b"", 0),
        (MessageDecoder().addresses, PID, [], "", 0),
    ],
)
def test_wrong_arguments(arguments: tuple[object, ...]) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        native.split_records(*arguments)
