# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The message header: 52 bytes before the payload."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd import MalformedMessage, Message, ServerID
from msgd.wire.header import HEADER_SIZE, MessageDecoder, pack_header
from tests.wire.strategies import uint32, wire_server_ids

decoder = MessageDecoder()


@given(wire_server_ids, wire_server_ids, uint32, st.binary(max_size=2000), st.integers(0, 20))
def test_round_trip(dst: ServerID, src: ServerID, message_type: int, data: bytes, offset: int) -> None:
    packed = bytes(offset) + pack_header(dst, src, message_type) + data
    assert len(packed) == offset + 52 + len(data)
    for one in (decoder, MessageDecoder()):
        assert one.decode(packed, offset, (3, 4)) == Message(message_type, src, dst, data, (3, 4))


@given(st.binary(max_size=HEADER_SIZE - 1), st.integers(0, 8))
def test_too_short(data: bytes, offset: int) -> None:
    with pytest.raises(MalformedMessage):
        decoder.decode(bytes(offset) + data, offset)


@given(st.binary(min_size=HEADER_SIZE, max_size=100))
def test_arbitrary_bytes_of_sufficient_length(data: bytes) -> None:
    message = decoder.decode(data)
    assert pack_header(message.dst, message.src, message.type) + message.data == data


@pytest.mark.parametrize(
    ("dst", "src", "message_type"),
    [
        (ServerID(-1), ServerID(1), 1),
        (ServerID(1), ServerID(1 << 64), 1),
        (ServerID(1, task_id=1 << 32), ServerID(1), 1),
        (ServerID(1, vnn=-1), ServerID(1), 1),
        (ServerID(1, unique_id=1 << 64), ServerID(1), 1),
        (ServerID(1), ServerID(1), -1),
        (ServerID(1), ServerID(1), 1 << 32),
    ],
)
def test_fields_that_do_not_fit(dst: ServerID, src: ServerID, message_type: int) -> None:
    with pytest.raises(ValueError, match=r"fit|process id"):
        pack_header(dst, src, message_type)


def test_memory_of_addresses_is_bounded() -> None:
    fresh = MessageDecoder()
    tracemalloc.start()
    try:
        for number in range(20_000):
            fresh.decode(pack_header(ServerID(number), ServerID(number, 1), 1))
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current < 1_000_000
