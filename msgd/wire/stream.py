# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The format of a stream: what one process writes to another on a connection, in one direction.

A stream is a hello, then frames, until end of file.  All integers are little-endian.  A hello and a frame both begin
with the same eight bytes:

    offset  size
    0       4     magic, `msgd`
    4       1     version, 1
    5       1     kind: 1 hello, 2 message
    6       2     hello: 0; message: the number of file descriptors that ride on it (at most 127)

A hello has 24 bytes.  After these eight come

    8       8     u64 unique id of the process that writes
    16      8     u64 number of the stream, higher than that of any stream this process has begun before

A frame carries one message.  After the eight bytes come

    8       4     u32 length of what follows
    12      52    the message header (msgd/wire/header.py)
    64            the data

Descriptors (SCM_RIGHTS) are sent with the first byte of the frame, so they arrive before its last byte.  A frame takes
as many as it announces, from those that have arrived and have not been taken.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from msgd.errors import MalformedMessage
from msgd.native import native
from msgd.wire.header import HEADER_SIZE, MAX_FDS, Message, MessageDecoder, new_message, pack_header
from msgd.wire.server_id import ServerID

_START = struct.Struct("<4sBBH")
_HELLO = struct.Struct("<8sQQ")
_FRAME_START = struct.Struct("<8sI")
_FRAME = struct.Struct("<8sIQIIQQIIQI")

_MAGIC = b"msgd"
_VERSION = 1
_KIND_HELLO, _KIND_MESSAGE = 1, 2
_HELLO_START = _START.pack(_MAGIC, _VERSION, _KIND_HELLO, 0)
_PLAIN_START = _START.pack(_MAGIC, _VERSION, _KIND_MESSAGE, 0)

HELLO_SIZE = _HELLO.size
HEADER_OFFSET = _FRAME_START.size
"""Offset of the message header in a frame."""
FRAME_SIZE = _FRAME.size
"""Bytes of a frame before the data: its own 12 and the message header's 52."""

LONG = 1 << 17
"""Bytes; to a FrameReader, a longer frame that has not all arrived is a long one."""

_HEADERS_MAX = 64
"""Different headers that a reader remembers; the table is emptied when it is full."""

_FRAMES, _DESCRIPTORS = 1, 2
"""What the compiled receive_frames() returns if there are frames, or descriptors, that it has left to FrameReader."""

LOST_FD = -1
"""Stands in `fds` for a descriptor that the kernel could not give to this process."""


class Hello(NamedTuple):
    """Which process writes the stream, and which of its streams it is."""

    unique_id: int
    number: int

    def pack(self) -> bytes:
        """The first bytes of the stream."""
        return _HELLO.pack(_HELLO_START, *self)

    @classmethod
    def unpack(cls, data: bytes) -> Hello:
        """Read HELLO_SIZE bytes.  Raises MalformedMessage if they are no hello."""
        start, unique_id, number = _HELLO.unpack(data)
        if start != _HELLO_START:
            raise MalformedMessage(f"a stream begins with {start.hex()}")
        return cls(unique_id, number)


def pack_frame(dst: ServerID, src: ServerID, message_type: int, length: int, fds: int = 0) -> bytes:
    """The bytes before the data in the frame of a message with `length` bytes of data and `fds` descriptors.

    Raises ValueError if a number does not fit its field.
    """
    start = _START.pack(_MAGIC, _VERSION, _KIND_MESSAGE, fds) if fds else _PLAIN_START
    try:
        return _FRAME.pack(start, HEADER_SIZE + length, *dst, *src, message_type)
    except struct.error:
        pack_header(dst, src, message_type)  # its error names the number that does not fit
        raise


class FrameReader:
    """Turns the bytes of one stream, in chunks of any size, into messages.

    Call feed() with each chunk.  When `long` is not 0, the frame that is arriving has that many bytes of data, so many
    that they are better received into one piece of memory: begin_long() returns those that have arrived, and
    finish_long() takes all of them.  A length is checked before anything is kept or allocated because of it.  A message
    whose source is another pid than `pid` is malformed.

    `fds` are the descriptors that have arrived and that no complete frame has taken; whoever closes the connection
    closes them.  A frame whose descriptors the kernel could not give to this process has LOST_FD in their places.
    """

    __slots__ = (
        "_addresses", "_decoder", "_headers", "_max_length", "_partial", "_pid", "_some_lost", "fds", "is_compiled",
        "long",
    )  # fmt: skip

    def __init__(self, decoder: MessageDecoder, max_message_size: int, pid: int) -> None:
        self._decoder = decoder
        self._pid = pid
        self._headers: dict[bytes, tuple[int, ServerID, ServerID]] = {}
        """Type, source and destination by their 52 bytes; most messages of a stream have one of a few headers."""
        self._max_length = max_message_size + HEADER_SIZE
        self._partial = b""
        self._some_lost = False
        self.fds: list[int] = []
        self.long = 0
        self.is_compiled = native is not None
        self._addresses = decoder.addresses

    @property
    def is_in_frame(self) -> bool:
        """Whether a frame has begun to arrive and is not complete."""
        return bool(self._partial)

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Yield the messages that a chunk completes.  Exhaust it before calling anything else.

        Raises MalformedMessage where the bytes are no frame.
        """
        data = self._partial + chunk if self._partial else chunk
        position, size = 0, len(data)
        headers, max_length = self._headers, self._max_length
        while size - position >= HEADER_OFFSET:
            start, length = _FRAME_START.unpack_from(data, position)
            number = 0 if start == _PLAIN_START else _number_of_fds(start)
            if not HEADER_SIZE <= length <= max_length:
                raise MalformedMessage(f"a frame of {length} bytes; between {HEADER_SIZE} and {max_length} are allowed")
            end = position + HEADER_OFFSET + length
            if end > size:
                if length > LONG and size - position >= FRAME_SIZE:
                    self.long = length - HEADER_SIZE
                break
            body = position + FRAME_SIZE
            header = data[position + HEADER_OFFSET : body]
            addresses = headers.get(header) or self._decode_header(header)
            yield new_message(Message, (*addresses, data[body:end], self._take_fds(number) if number else ()))
            position = end
        self._partial = data[position:]
        if self.fds:
            self._check_fds()

    def receive(self, fd: int, deliver: Callable[[Message], object]) -> Iterator[Message] | None:
        """Receive once from a socket, and take what comes: the compiled twin of feed().  Only if `is_compiled`.

        Messages without descriptors go to `deliver`, a builtin.  What comes behind others is returned, as by feed();
        None if that is nothing.  Raises OSError, EOFError at the end of the stream, MalformedMessage.
        """
        care = native.receive_frames(self._addresses, self._pid, self._max_length, deliver, fd, self)
        if not care:
            return None
        if care != _FRAMES:
            self.add_fds((), complete=care == _DESCRIPTORS)
        return self.feed(b"")

    def begin_long(self) -> memoryview:
        """The data of the long frame that has arrived so far."""
        data = memoryview(self._partial)[FRAME_SIZE:]
        self._partial = self._partial[:FRAME_SIZE]
        return data

    def skip_long(self) -> int:
        """Give up the data of the long frame that has arrived so far, and return how many bytes are still to come.

        The caller throws these away; then finish_long(b"") tells whose message it was.
        """
        missing = self.long - len(self._partial) + FRAME_SIZE
        self._partial = self._partial[:FRAME_SIZE]
        return missing

    def finish_long(self, data: bytes) -> Message:
        """The message of the long frame, whose data is complete."""
        addresses = self._decode_header(self._partial[HEADER_OFFSET:])
        fds = self._take_fds(_number_of_fds(self._partial[: _START.size]))
        self._partial, self.long = b"", 0
        return Message(*addresses, data, fds)

    def _decode_header(self, header: bytes) -> tuple[int, ServerID, ServerID]:
        message_type, src, dst, _, _ = self._decoder.decode(header)
        if src.pid != self._pid:
            raise MalformedMessage(f"its source claims to be pid {src.pid}")
        if len(self._headers) >= _HEADERS_MAX:
            self._headers.clear()
        self._headers[header] = addresses = (message_type, src, dst)
        return addresses

    def add_fds(self, fds: Iterable[int], *, complete: bool) -> None:
        """Take descriptors that have arrived.

        If they are not `complete`, the kernel has kept those after them.  Raises MalformedMessage if there are too
        many.
        """
        self.fds.extend(fds)
        self._some_lost = not complete
        if len(self.fds) > 2 * MAX_FDS:  # those of the frame that is arriving, and of the next one
            raise MalformedMessage(f"{len(self.fds)} descriptors arrived that no frame takes")

    def _take_fds(self, number: int) -> tuple[int, ...]:
        taken = self.fds[:number]
        if len(taken) < number:
            if not self._some_lost:
                raise MalformedMessage(f"a frame announces {number} descriptors and {len(taken)} arrived")
            taken += [LOST_FD] * (number - len(taken))
        self._some_lost = False
        del self.fds[:number]
        return tuple(taken)

    def _check_fds(self) -> None:
        """Raise MalformedMessage if more descriptors are held than the frame that is arriving can take."""
        if not self._partial:
            announced = 0
        elif len(self._partial) < _START.size:
            announced = MAX_FDS
        else:
            announced = _number_of_fds(self._partial[: _START.size])
        if len(self.fds) > announced:
            raise MalformedMessage(f"{len(self.fds)} descriptors arrived that no frame announces")


def _move_all(messages: deque[Message], deliver: Callable[[Message], None]) -> None:
    """Pass each message on, the oldest first."""
    while messages:
        deliver(messages.popleft())


move_all = _move_all if native is None else native.move_all


def _number_of_fds(start: bytes) -> int:
    magic, version, kind, number = _START.unpack(start)
    if magic != _MAGIC or version != _VERSION or kind != _KIND_MESSAGE or number > MAX_FDS:
        raise MalformedMessage(f"a frame begins with {start.hex()}")
    return int(number)
