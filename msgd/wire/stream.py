"""Streams: what one process writes to another on a connection, in one direction.

A stream is a hello, then frames, until the end of the file.  All integers are little-endian, and both begin alike:

    offset  size
    0       4     magic, `msgd`
    4       1     version, 1
    5       1     kind: 1 hello, 2 message
    6       2     hello: 0; message: the number of file descriptors that ride with it (at most 127)

Hello, 24 bytes: then u64 unique id of the process that writes; u64 number of the stream, which is higher than that of
any stream the process has begun before.

Message: then u32 length of what follows, which is the 52-byte header and the data.  Descriptors (SCM_RIGHTS) are sent
with the frame's first byte, so they are there before its last: a frame takes the number it announces from those that
have come and not been taken.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgd.errors import MalformedMessage
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
"""Where the message header stands in a frame."""
FRAME_SIZE = _FRAME.size
"""Bytes of a frame before the data: its own 12 and the message header's 52."""

LONG = 1 << 16
"""Frames with more bytes than this, and not all there, are long ones to a FrameReader."""

_HEADERS_MAX = 64
"""Different headers a reader remembers; the table is emptied when it is full."""

LOST_FD = -1
"""Stands for a descriptor that the kernel could not give to this process."""


class Hello(NamedTuple):
    """Who writes the stream, and which of its streams it is."""

    unique_id: int
    number: int

    def pack(self) -> bytes:
        """The first bytes of the stream."""
        return _HELLO.pack(_HELLO_START, *self)

    @classmethod
    def unpack(cls, data: bytes) -> Hello:
        """Read HELLO_SIZE bytes; MalformedMessage if they are no hello."""
        start, unique_id, number = _HELLO.unpack(data)
        if start != _HELLO_START:
            raise MalformedMessage(f"a stream begins with {start.hex()}")
        return cls(unique_id, number)


def pack_frame(dst: ServerID, src: ServerID, message_type: int, length: int, fds: int = 0) -> bytes:
    """What stands before `length` bytes of data in the frame of a message with that number of descriptors.

    Raises ValueError if something does not fit.
    """
    start = _START.pack(_MAGIC, _VERSION, _KIND_MESSAGE, fds) if fds else _PLAIN_START
    try:
        return _FRAME.pack(start, HEADER_SIZE + length, *dst, *src, message_type)
    except struct.error:
        pack_header(dst, src, message_type)  # tells what does not fit
        raise


class FrameReader:
    """Turns the bytes of one stream, in chunks of any size, into messages.

    Frames come in chunks: feed() them.  When `long` is not 0, the frame that is coming has so many bytes of data that
    they are better received into one piece of memory: begin_long() gives those that have come, finish_long() takes
    them all.  A length is checked before anything is kept or allocated because of it.  A message from another pid than
    `pid` is malformed.

    `fds` are the descriptors that have come and that no complete frame has taken; whoever closes the connection closes
    them.  A frame whose descriptors the kernel could not give to this process has LOST_FD in their places.
    """

    __slots__ = ("_decoder", "_headers", "_max_length", "_partial", "_pid", "_some_lost", "fds", "long")

    def __init__(self, decoder: MessageDecoder, max_message_size: int, pid: int) -> None:
        self._decoder = decoder
        self._pid = pid
        self._headers: dict[bytes, tuple[int, ServerID, ServerID]] = {}
        """Type, source and destination by the 52 bytes that say so: most messages of a stream have the same few."""
        self._max_length = max_message_size + HEADER_SIZE
        self._partial = b""
        self._some_lost = False
        self.fds: list[int] = []
        self.long = 0

    @property
    def is_in_frame(self) -> bool:
        """Whether a frame has begun to come and is not complete."""
        return bool(self._partial)

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Yield the messages that a chunk completes; MalformedMessage where the bytes are no frame.

        It must be exhausted before anything else is called.
        """
        data = self._partial + chunk if self._partial else chunk
        position, size = 0, len(data)
        headers, max_length = self._headers, self._max_length
        while size - position >= HEADER_OFFSET:
            start, length = _FRAME_START.unpack_from(data, position)
            number = 0 if start == _PLAIN_START else _number_of_fds(start)
            if not HEADER_SIZE <= length <= max_length:
                raise MalformedMessage(f"a frame of {length} bytes; it must have {HEADER_SIZE} to {max_length}")
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

    def begin_long(self) -> memoryview:
        """The data of the long frame that has come."""
        data = memoryview(self._partial)[FRAME_SIZE:]
        self._partial = self._partial[:FRAME_SIZE]
        return data

    def finish_long(self, data: bytes) -> Message:
        """The message of the long frame with all its data."""
        addresses = self._decode_header(self._partial[HEADER_OFFSET:])
        fds = self._take_fds(_number_of_fds(self._partial[: _START.size]))
        self._partial, self.long = b"", 0
        return Message(*addresses, data, fds)

    def _decode_header(self, header: bytes) -> tuple[int, ServerID, ServerID]:
        message_type, src, dst, _, _ = self._decoder.decode(header)
        if src.pid != self._pid:
            raise MalformedMessage(f"its source says pid {src.pid}")
        if len(self._headers) >= _HEADERS_MAX:
            self._headers.clear()
        self._headers[header] = addresses = (message_type, src, dst)
        return addresses

    def add_fds(self, fds: Iterable[int], *, complete: bool) -> None:
        """Take descriptors that have come; if they are not complete, the kernel has kept those behind them."""
        self.fds.extend(fds)
        self._some_lost = not complete
        if len(self.fds) > 2 * MAX_FDS:  # those of a frame that is coming, and of the next
            raise MalformedMessage(f"{len(self.fds)} descriptors came that no frame takes")

    def _take_fds(self, number: int) -> tuple[int, ...]:
        taken = self.fds[:number]
        if len(taken) < number:
            if not self._some_lost:
                raise MalformedMessage(f"a frame announces {number} descriptors and {len(taken)} came")
            taken += [LOST_FD] * (number - len(taken))
        self._some_lost = False
        del self.fds[:number]
        return tuple(taken)

    def _check_fds(self) -> None:
        """Raise MalformedMessage if more descriptors are held than the frame that is coming can take."""
        if not self._partial:
            announced = 0
        elif len(self._partial) < _START.size:
            announced = MAX_FDS
        else:
            announced = _number_of_fds(self._partial[: _START.size])
        if len(self.fds) > announced:
            raise MalformedMessage(f"{len(self.fds)} descriptors came that no frame announces")


def _number_of_fds(start: bytes) -> int:
    magic, version, kind, number = _START.unpack(start)
    if magic != _MAGIC or version != _VERSION or kind != _KIND_MESSAGE or number > MAX_FDS:
        raise MalformedMessage(f"a frame begins with {start.hex()}")
    return int(number)
