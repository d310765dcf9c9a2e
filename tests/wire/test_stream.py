# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The stream format without a socket: chunks of any size, and arbitrary bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd import Message, ServerID
from msgd.backends.at_once import do
from msgd.errors import MalformedMessage
from msgd.wire.header import MessageDecoder
from msgd.wire.stream import FRAME_SIZE, HELLO_SIZE, LONG, LOST_FD, FrameReader, Hello, pack_frame
from tests.wire.frames import completed, feed

SRC, DST = ServerID(5, 1, unique_id=77), ServerID(6, 2, unique_id=88)
MAX = LONG + 1000


def read(reader: FrameReader, chunks: Sequence[bytes]) -> list[Message]:
    """The messages in these chunks; long frames are collected as a Connection does."""
    messages: list[Message] = []
    for chunk in chunks:
        rest = chunk
        while rest:
            if not reader.long:
                messages += feed(reader, rest)
                rest = b""
                collected = bytearray()
                if reader.long:
                    data, steps = reader.begun_long()
                    collected += data
                    do(steps)
            else:
                missing = reader.long - len(collected)
                collected += rest[:missing]
                rest = rest[missing:]
                if len(collected) == reader.long:
                    do(reader.finished_long(bytes(collected)))
                    messages += completed(reader)
    return messages


def new_reader() -> FrameReader:
    return FrameReader(MessageDecoder(), MAX, SRC.pid)


def test_golden_hello() -> None:
    expected = b"msgd\x01\x01\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00"
    assert Hello(0x102, 3).pack() == expected
    assert len(expected) == HELLO_SIZE
    assert Hello.unpack(expected) == Hello(0x102, 3)


def test_golden_frame() -> None:
    expected = (
        b"msgd" b"\x01\x02\x00\x00" b"\x36\x00\x00\x00"
        b"\x06\x00\x00\x00\x00\x00\x00\x00" b"\x02\x00\x00\x00" b"\xff\xff\xff\xff" b"\x58\x00\x00\x00\x00\x00\x00\x00"
        b"\x05\x00\x00\x00\x00\x00\x00\x00" b"\x01\x00\x00\x00" b"\xff\xff\xff\xff" b"\x4d\x00\x00\x00\x00\x00\x00\x00"
        b"\x02\x00\x00\x00" b"hi"
    )  # fmt: skip
    assert pack_frame(DST, SRC, 2, 2) + b"hi" == expected
    assert read(new_reader(), [expected]) == [Message(2, SRC, DST, b"hi")]


@given(
    sizes=st.lists(st.sampled_from([0, 1, 50, 300, LONG - 52, LONG - 51, LONG + 900]), max_size=6),
    cuts=st.lists(st.integers(1, LONG), min_size=1, max_size=20),
)
def test_any_chunks(sizes: list[int], cuts: list[int]) -> None:
    """The messages are the same, however their bytes are cut into chunks."""
    data = [bytes([number]) * size for number, size in enumerate(sizes)]
    stream = b"".join(pack_frame(DST, SRC, 9, len(one)) + one for one in data)
    chunks, position = [], 0
    for cut in cuts:
        chunks.append(stream[position : position + cut])
        position += cut
    reader = new_reader()
    assert [message.data for message in read(reader, [*chunks, stream[position:]])] == data
    assert not reader.is_in_frame


def test_byte_by_byte() -> None:
    stream = (pack_frame(DST, SRC, 9, 3) + b"abc") * 3
    reader = new_reader()
    assert [message.data for message in read(reader, [bytes([one]) for one in stream])] == [b"abc"] * 3


@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    """Arbitrary bytes are malformed, unless they are the beginning of a frame."""
    reader = new_reader()
    try:
        assert list(feed(reader, data)) == []
    except MalformedMessage:
        assert not (b"msgd\x01\x02\x00\x00").startswith(data)


@given(st.binary(min_size=HELLO_SIZE, max_size=HELLO_SIZE))
def test_garbage_for_a_hello(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Hello.unpack(data)


@pytest.mark.parametrize("length", [0, 51, MAX + 52 + 1, 0xFFFFFFFF])
def test_lying_length(length: int) -> None:
    """A length out of range is refused as soon as it has arrived, before memory is allocated for it."""
    reader = new_reader()
    with pytest.raises(MalformedMessage, match="between 52 and"):
        list(feed(reader, b"msgd\x01\x02\x00\x00" + struct.pack("<I", length)))
    assert reader.long == 0


def test_longest_message() -> None:
    stream = pack_frame(DST, SRC, 9, MAX) + bytes(MAX)
    assert [len(message.data) for message in read(new_reader(), [stream[:100], stream[100:]])] == [MAX]


@pytest.mark.parametrize(
    "start",
    [b"mscd\x01\x02\0\0", b"msgd\x02\x02\0\0", b"msgd\x01\x01\0\0", b"msgd\x01\x02\x80\0", b"msgd\x01\x02\0\x01"],
    ids=["magic", "version", "kind", "128 descriptors", "256 descriptors"],
)
def test_lying_start(start: bytes) -> None:
    with pytest.raises(MalformedMessage):
        list(feed(new_reader(), start + struct.pack("<I", 52) + bytes(52)))


@pytest.mark.parametrize("field", ["pid", "task_id", "vnn", "unique_id"])
def test_error_names_the_field_that_does_not_fit(field: str) -> None:
    with pytest.raises(ValueError, match=field.split("_")[0]):
        pack_frame(DST._replace(**{field: 1 << 64}), SRC, 9, 0)


def test_lying_source() -> None:
    """The messages before the forged one are delivered."""
    messages: list[Message] = []
    stream = pack_frame(DST, SRC, 9, 0) + pack_frame(DST, SRC._replace(pid=4), 9, 0)
    with pytest.raises(MalformedMessage, match="claims to be pid 4"):
        messages.extend(feed(new_reader(), stream))
    assert messages == [Message(9, SRC, DST, b"")]


def test_any_number_of_headers() -> None:
    """A stream may have more different headers than a reader remembers."""
    stream = b"".join(pack_frame(DST, SRC, number % 100, 0) for number in range(300))
    assert [message.type for message in read(new_reader(), [stream])] == [number % 100 for number in range(300)]


class TestDescriptors:
    """Which frame takes which descriptors; these numbers are no real ones."""

    def test_in_order(self) -> None:
        reader = new_reader()
        do(reader.arrived([10, 11, 12], complete=True))
        stream = pack_frame(DST, SRC, 1, 0, 2) + pack_frame(DST, SRC, 2, 0) + pack_frame(DST, SRC, 3, 0, 1)
        assert [message.fds for message in read(reader, [stream])] == [(10, 11), (), (12,)]
        assert reader.fds == []

    def test_arriving_before_the_rest_of_the_frame(self) -> None:
        reader = new_reader()
        stream = pack_frame(DST, SRC, 1, LONG, 1) + bytes(LONG)
        do(reader.arrived([10], complete=True))
        assert read(reader, [stream[:5]]) == []
        assert [message.fds for message in read(reader, [stream[5:70], stream[70:]])] == [(10,)]

    def test_fewer_than_announced(self) -> None:
        reader = new_reader()
        do(reader.arrived([10], complete=True))
        with pytest.raises(MalformedMessage, match="announces 2"):
            list(feed(reader, pack_frame(DST, SRC, 1, 0, 2)))
        assert reader.fds == [10], "the connection closes it"

    @pytest.mark.parametrize("rest", [0, 20])
    def test_unannounced(self, rest: int) -> None:
        reader = new_reader()
        do(reader.arrived([10], complete=True))
        frames = pack_frame(DST, SRC, 1, 0) * 2
        with pytest.raises(MalformedMessage, match="no frame announces"):
            list(feed(reader, frames[: FRAME_SIZE + rest]))

    def test_too_many_held(self) -> None:
        reader = new_reader()
        do(reader.arrived(range(127), complete=True))
        do(reader.arrived(range(127), complete=True))
        assert list(completed(reader)) == []
        do(reader.arrived([1], complete=True))
        with pytest.raises(MalformedMessage, match="no frame takes"):
            list(completed(reader))

    def test_lost_by_the_kernel(self) -> None:
        """Only the frame whose descriptors the kernel kept has LOST_FD in their places."""
        reader = new_reader()
        do(reader.arrived([10], complete=False))
        assert [message.fds for message in read(reader, [pack_frame(DST, SRC, 1, 0, 3)])] == [(10, LOST_FD, LOST_FD)]
        with pytest.raises(MalformedMessage):
            list(feed(reader, pack_frame(DST, SRC, 1, 0, 1)))
