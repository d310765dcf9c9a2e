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

import enum
import struct
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
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

_LOST_DESCRIPTORS = 3
"""What the compiled receive_frames() returns if the kernel has kept descriptors.

It returns other numbers, but 0, if there are frames or descriptors that it has left to FrameReader.
"""


class Lost(enum.Enum):
    """What there was not enough of for a message that has come."""

    MEMORY = enum.auto()
    DESCRIPTORS = enum.auto()


Step = Callable[[], object]

CLOSED = -1
"""FrameReader.long, once nothing more may be received: the number of the descriptor may be another's by now."""

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

    What is to be done about a chunk is worked out first, and comes back as steps: calls without arguments that change
    this object.  The caller does them together with taking the chunk from where it is, in one call into C, so that an
    exception of a signal's handler finds the chunk either untouched or done with.

    When `long` is not 0, the frame that is arriving has that many bytes of data, so many that they are better received
    into one piece of memory: begun_long() returns those that have arrived, and finished_long() takes all of them.  A
    length is checked before anything is kept or allocated because of it.  A message whose source is another pid than
    `pid` is malformed.

    `fds` are the descriptors that have arrived and that no complete frame has taken; whoever closes the connection
    closes them.  A frame whose descriptors the kernel could not give to this process has LOST_FD in their places.
    """

    __slots__ = (
        "_addresses", "_decoder", "_headers", "_max_length", "_partial", "_pid", "_some_lost", "fds", "is_compiled",
        "long", "lost", "problem", "ready",
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
        self.ready: deque[Message] = deque()
        """The messages that are complete, the oldest first; whoever takes one closes its descriptors."""
        self.lost: deque[tuple[Lost, Message]] = deque()
        """Those that are complete, but for what there was not enough of."""
        self.problem = ""
        """What is wrong with the bytes behind those messages; nothing more can be taken then."""
        self._addresses = decoder.addresses

    @property
    def is_in_frame(self) -> bool:
        """Whether a frame has begun to arrive and is not complete."""
        return bool(self._partial)

    def taken(
        self, chunk: bytes, fds: Sequence[int] = (), *, complete: bool = True, long_begins: Step | None = None
    ) -> list[Step]:
        """The steps that take a chunk, and the descriptors that came with it.

        If these are not `complete`, the kernel has kept those after them.  `long_begins` is one of the steps if the
        chunk is the beginning of a long frame.
        """
        data = self._partial + chunk if self._partial else chunk
        held, some_lost = [*self.fds, *fds], not complete if fds or not complete else self._some_lost
        messages: list[Message] = []
        lost: list[tuple[Lost, Message]] = []
        position, size, long, problem = 0, len(data), 0, ""
        headers, max_length = self._headers, self._max_length
        try:
            while size - position >= HEADER_OFFSET:
                start, length = _FRAME_START.unpack_from(data, position)
                number = 0 if start == _PLAIN_START else _number_of_fds(start)
                if not HEADER_SIZE <= length <= max_length:
                    problem = f"a frame of {length} bytes; between {HEADER_SIZE} and {max_length} are allowed"
                    break
                end = position + HEADER_OFFSET + length
                if end > size:
                    if length > LONG and size - position >= FRAME_SIZE:
                        long = length - HEADER_SIZE
                    break
                body = position + FRAME_SIZE
                header = data[position + HEADER_OFFSET : body]
                addresses = headers.get(header) or self._decode_header(header)
                if number:
                    own = _take_fds(held, number, some_lost=some_lost)
                    some_lost = False
                    message = Message(*addresses, data[body:end], own)
                    if LOST_FD in own:
                        lost.append((Lost.DESCRIPTORS, message))
                    else:
                        messages.append(message)
                else:
                    messages.append(new_message(Message, (*addresses, data[body:end], ())))
                position = end
            partial_ = data[position:]
            if held and not problem:
                _check_fds(held, partial_)
        except MalformedMessage as error:
            partial_, problem = data[position:], str(error)
        steps: list[Step] = [
            partial(setattr, self, "_partial", partial_),
            partial(self.ready.extend, messages),
        ]
        if held or self.fds or some_lost != self._some_lost:
            steps += self._keeping(held, some_lost=some_lost)
        if lost:
            steps.append(partial(self.lost.extend, lost))
        if problem:
            steps.append(partial(setattr, self, "problem", problem))
        elif long:
            steps.append(partial(setattr, self, "long", long))
            if long_begins is not None:
                steps.append(long_begins)
        return steps

    def receiver(self, fd: int) -> Callable[[], int]:
        """A call that receives once from a socket, and takes what comes: the compiled twin of taken().

        Only if `is_compiled`.  It returns 0, or what cared() is to see to.  It raises OSError, and EOFError at the end
        of the stream.
        """
        return partial(native.receive_frames, self._addresses, self._pid, self._max_length, self.ready.append, fd, self)

    def cared(self, care: int, long_begins: Step) -> list[Step]:
        """The steps that take what the compiled twin has left; see taken()."""
        return self.taken(b"", complete=care != _LOST_DESCRIPTORS, long_begins=long_begins)

    def arrived(self, fds: Sequence[int], *, complete: bool) -> list[Step]:
        """The steps that take descriptors which have arrived in the middle of a long frame."""
        held = [*self.fds, *fds]
        steps = self._keeping(held, some_lost=not complete)
        if len(held) > 2 * MAX_FDS:  # those of the frame that is arriving, and of the next one
            problem = f"{len(held)} descriptors arrived that no frame takes"
            steps.append(partial(setattr, self, "problem", problem))
        return steps

    def _keeping(self, fds: list[int], *, some_lost: bool) -> list[Step]:
        return [
            partial(self.fds.__setitem__, slice(None), fds),
            partial(setattr, self, "_some_lost", some_lost),
        ]

    def begun_long(self) -> tuple[memoryview, list[Step]]:
        """The data of the long frame that has arrived so far, and the steps that take it from here."""
        data = memoryview(self._partial)[FRAME_SIZE:]
        return data, [partial(setattr, self, "_partial", self._partial[:FRAME_SIZE])]

    def finished_long(
        self, data: bytes, fds: Sequence[int] = (), *, complete: bool = True, reason: Lost | None = None
    ) -> list[Step]:
        """The steps that complete the long frame, whose data is complete; `fds` came with the last of it.

        With a `reason`, its data had to be thrown away.
        """
        held, some_lost = [*self.fds, *fds], not complete if fds or not complete else self._some_lost
        try:
            addresses = self._decode_header(self._partial[HEADER_OFFSET:])
            own = _take_fds(held, _number_of_fds(self._partial[: _START.size]), some_lost=some_lost)
        except MalformedMessage as error:
            return [*self._keeping(held, some_lost=some_lost), partial(setattr, self, "problem", str(error))]
        message = Message(*addresses, data, own)
        if LOST_FD in own:
            reason = reason or Lost.DESCRIPTORS
        return [
            *self._keeping(held, some_lost=False),
            partial(setattr, self, "_partial", b""),
            partial(setattr, self, "long", 0),
            partial(self.lost.append, (reason, message)) if reason else partial(self.ready.append, message),
        ]

    def _decode_header(self, header: bytes) -> tuple[int, ServerID, ServerID]:
        message_type, src, dst, _, _ = self._decoder.decode(header)
        if src.pid != self._pid:
            raise MalformedMessage(f"its source claims to be pid {src.pid}")
        if len(self._headers) >= _HEADERS_MAX:
            self._headers.clear()
        self._headers[header] = addresses = (message_type, src, dst)
        return addresses


def _take_fds(held: list[int], number: int, *, some_lost: bool) -> tuple[int, ...]:
    """Take so many descriptors from those held.  Raises MalformedMessage."""
    own = held[:number]
    if len(own) < number:
        if not some_lost:
            raise MalformedMessage(f"a frame announces {number} descriptors and {len(own)} arrived")
        own += [LOST_FD] * (number - len(own))
    del held[:number]
    return tuple(own)


def _check_fds(held: list[int], beginning: bytes) -> None:
    """Raise MalformedMessage if more descriptors are held than the frame that is arriving can take."""
    if not beginning:
        announced = 0
    elif len(beginning) < _START.size:
        announced = MAX_FDS
    else:
        announced = _number_of_fds(beginning[: _START.size])
    if len(held) > announced:
        raise MalformedMessage(f"{len(held)} descriptors arrived that no frame announces")


def _number_of_fds(start: bytes) -> int:
    magic, version, kind, number = _START.unpack(start)
    if magic != _MAGIC or version != _VERSION or kind != _KIND_MESSAGE or number > MAX_FDS:
        raise MalformedMessage(f"a frame begins with {start.hex()}")
    return int(number)
