# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""stream: what the compiled twin makes of the bytes of a connection is what FrameReader.feed() makes of them."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd import Message, ServerID
from msgd.errors import MalformedMessage
from msgd.native import native
from msgd.wire.header import MessageDecoder
from msgd.wire.stream import LONG, FrameReader, pack_frame

SRC, DST = ServerID(5, 1, unique_id=77), ServerID(6, 2, unique_id=88)
MAX = LONG + 1000

Seen = tuple[list[Message], bytes, int, str]
"""The messages, the bytes that wait for more, the length of a long frame that has begun, and the complaint."""


def frame(data: bytes, src: ServerID = SRC, dst: ServerID = DST, fds: int = 0) -> bytes:
    return pack_frame(dst, src, 7, len(data), fds) + data


def fed(chunks: Sequence[bytes]) -> Seen:
    """What the Python twin makes of the chunks, up to the first complaint or the first long frame."""
    reader = FrameReader(MessageDecoder(), MAX, SRC.pid)
    messages: list[Message] = []
    try:
        for chunk in chunks:
            for message in reader.feed(chunk):
                messages.append(message)
            if reader.long:
                break
    except MalformedMessage as error:
        return messages, b"", 0, str(error)
    return messages, reader._partial, reader.long, ""


def received(chunks: Sequence[bytes]) -> Seen:
    """What the compiled twin makes of them, from a socket."""
    reader = FrameReader(MessageDecoder(), MAX, SRC.pid)
    messages: list[Message] = []
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with here, there:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        try:
            for chunk in chunks:
                here.sendall(chunk)
                for message in reader.receive(there.fileno(), messages.append) or ():
                    messages.append(message)
                if reader.long:
                    break
        except MalformedMessage as error:
            return messages, b"", 0, str(error)
    return messages, reader._partial, reader.long, ""


addresses = st.builds(
    ServerID,
    st.sampled_from([SRC.pid, SRC.pid, 6, 1 << 40]),
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from([0xFFFFFFFF, 0]),
    st.integers(0, 0xFFFFFFFFFFFFFFFF),
)
parts = st.one_of(
    st.tuples(st.binary(max_size=300), addresses, addresses),
    st.tuples(st.binary(max_size=300), addresses, addresses),
    st.tuples(st.binary(max_size=300), addresses, addresses),
    st.sampled_from([LONG - 60, LONG - 52, LONG - 51, LONG, MAX, MAX + 1]),
    st.binary(max_size=80),
)
"""A frame, the length of a long one, or garbage."""


def made(part: tuple[bytes, ServerID, ServerID] | int | bytes) -> bytes:
    if isinstance(part, bytes):
        return part
    return frame(bytes(part)) if isinstance(part, int) else frame(*part)


chunk_sizes = st.lists(st.one_of(st.integers(1, 200), st.just(0)), min_size=1, max_size=9)
"""Of what each read returns; 0: as much as it takes."""


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    chunks: list[bytes] = []
    position = 0
    for size in cycle(sizes):
        if position >= len(data) or len(chunks) > 3000:
            return chunks
        chunks.append(data[position : position + (size or 1 << 16)])
        position += len(chunks[-1])
    return chunks


@given(
    st.lists(parts, max_size=8),
    st.lists(st.tuples(st.integers(0, 1 << 18), st.integers(0, 255)), max_size=3),
    chunk_sizes,
)
def test_same_as_fed(frames: list[Any], damage: list[tuple[int, int]], sizes: list[int]) -> None:
    """Frames, some of them damaged, in chunks of any size."""
    data = bytearray(b"".join(map(made, frames)))
    for place, value in damage:
        if data:
            data[place % len(data)] = value
    chunks = cut(bytes(data), sizes)
    assert received(chunks) == fed(chunks)


def test_address_of_others_is_forged() -> None:
    messages, _, _, complaint = received([frame(b"one") + frame(b"two", src=ServerID(9))])
    assert [message.data for message in messages] == [b"one"]
    assert "claims to be pid 9" in complaint


def test_many_peers_share_the_table_of_addresses() -> None:
    """Whatever addresses come, each message has its own."""
    chunks = [frame(b"%d" % number, dst=ServerID(6, number)) for number in range(2000)]
    assert received(chunks) == fed(chunks)


@pytest.mark.parametrize("before", [[], [b"plain"], [bytes(50_000), bytes(50_000)]])
@pytest.mark.parametrize("number", [1, 127])
def test_descriptors(before: list[bytes], number: int) -> None:
    """They arrive with their frame, in order, and none is lost or left open."""
    reader = FrameReader(MessageDecoder(), MAX, SRC.pid)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pipe = os.pipe()
    with here, there:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        here.sendall(b"".join(map(frame, before)))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pipe[0]] * number))]
        here.sendmsg([frame(b"with them", fds=number)], rights)
        messages: list[Message] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                messages += reader.receive(there.fileno(), messages.append) or ()
    assert [message.data for message in messages] == [*before, b"with them"]
    fds = messages[-1].fds
    assert len(fds) == number
    assert not reader.fds
    assert {os.fstat(fd).st_ino for fd in fds} == {os.fstat(pipe[0]).st_ino}
    for fd in (*fds, *pipe):
        os.close(fd)


def test_descriptors_nobody_asked_for() -> None:
    reader = FrameReader(MessageDecoder(), MAX, SRC.pid)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with here, there:
        here.sendmsg([frame(b"x")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
        with pytest.raises(MalformedMessage, match="no frame announces"):
            list(reader.receive(there.fileno(), list[Message]().append) or ())
    assert len(reader.fds) == 1  # its connection closes it
    os.close(reader.fds.pop())


def test_end_of_the_stream() -> None:
    reader = FrameReader(MessageDecoder(), MAX, SRC.pid)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with there:
        with pytest.raises(BlockingIOError):
            reader.receive(there.fileno(), list[Message]().append)
        here.close()
        with pytest.raises(EOFError):
            reader.receive(there.fileno(), list[Message]().append)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (1, 2, 3, 4, 5, 6),
        (MessageDecoder().addresses, -1, MAX, list[Message]().append, 0, None),
        (MessageDecoder().addresses, 5, MAX, list[Message]().append, 0, None),
        (MessageDecoder().addresses, 5, MAX, print, "0", FrameReader(MessageDecoder(), MAX, 5)),
    ],
)
def test_wrong_arguments(arguments: tuple[object, ...]) -> None:
    with pytest.raises((TypeError, OverflowError, AttributeError)):
        native.receive_frames(*arguments)
