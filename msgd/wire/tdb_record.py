"""Records of messages.tdb, as Samba 3.0 writes them, and what only msgd writes.

The value of key `PID/<pid>` NUL is any number of records one after the other, unpadded, in native byte order:
i32 version, i32 type, i32 destination pid, i32 source pid, u64 length of the data (24 bytes on a 64-bit machine),
then the data.  (Samba 3.0's message_rec.)

Version 1 is the message itself.  A version 1 record has room for pids only; what it lacks stands in a record before it:

Version 2, the ids of the version 1 record that follows at once (both are appended in one step); its data is u32
destination task id, u32 source task id, u64 destination unique id, u64 source unique id.  An old reader skips it with
a log line and takes the message.

Version 3, "continued": the source pid's next messages are in the segment of this number, which is in the record of key
`PID/<pid>/<source pid>/<unique>/<slot>` NUL; its data is u64 source unique id, u64 number, u64 slot.

Version 4, "segment": the first record of a segment; its data is the u64 number.  A slot holds one segment after the
other, each with another number.  See backends/tdb_destination.py.

One key is not of messages: `msgd/space` NUL tells whether somebody was changing the file's free space when he was
killed.  See backends/messages_tdb.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from msgd.errors import MalformedMessage
from msgd.wire.header import Message, new_message
from msgd.wire.server_id import ANY_PROCESS, NONCLUSTER_VNN, ServerID

RECORD = struct.Struct("=iiiiQ")
IDS = struct.Struct("=IIQQ")
CONTINUED = struct.Struct("=QQQ")
SEGMENT = struct.Struct("=Q")
RECORD_WITH_IDS = struct.Struct(RECORD.format + IDS.format[1:] + RECORD.format[1:])
"""A version 2 record and the version 1 record it belongs to."""

MESSAGE_VERSION = 1
IDS_VERSION = 2
CONTINUED_VERSION = 3
SEGMENT_VERSION = 4

CONTINUATION_SIZE = RECORD.size + CONTINUED.size
SEGMENT_START_SIZE = RECORD.size + SEGMENT.size
"""Bytes of a version 3 and of a version 4 record."""

SPACE_KEY = b"msgd/space\0"
SPACE_SOUND, SPACE_CHANGING = b"sound   ", b"changing"
"""What its value may be."""

RECORD_TYPE_MAX = 0x7FFFFFFF
"""The record's type is an int."""


class Continuation(NamedTuple):
    """A version 3 record: where the messages of a source go on."""

    pid: int
    unique_id: int
    number: int
    slot: int


class SegmentStart(NamedTuple):
    """A version 4 record: which segment this is."""

    number: int


class Special(NamedTuple):
    """What is in a value besides messages, and how many messages stand before it."""

    position: int
    what: Continuation | SegmentStart | MalformedMessage


def queue_key(pid: int) -> bytes:
    """The key under which a process finds its messages."""
    return b"PID/%d\0" % pid


def segment_key(pid: int, source_pid: int, source_unique_id: int, slot: int) -> bytes:
    """The key of one of the records in which a source's messages to `pid` go on."""
    return b"PID/%d/%d/%d/%d\0" % (pid, source_pid, source_unique_id, slot)


def key_source_pid(key: bytes) -> int | None:
    """The pid of the source whose segments a key is for, None if it is no such key."""
    parts = key.rstrip(b"\0").split(b"/")
    return int(parts[2]) if len(parts) == 5 and parts[2].isdigit() and len(parts[2]) < 11 else None


def key_pid(key: bytes) -> int | None:
    """The pid whose messages a key holds, None if it is none of these keys."""
    prefix, _, rest = key.rstrip(b"\0").partition(b"/")
    pid = rest.partition(b"/")[0]
    return int(pid) if prefix == b"PID" and pid.isdigit() and len(pid) < 11 else None


def pack_message(dst: ServerID, src: ServerID, message_type: int, data: bytes) -> bytes:
    """The plain record, with its ids before it where it cannot do without.

    It can between tasks 0 when the destination is addressed by its pid alone.  ValueError if something does not fit.
    """
    dst_pid, dst_task, _, dst_unique = dst
    src_pid, src_task, _, src_unique = src
    try:
        if dst_task or src_task or dst_unique not in ANY_PROCESS:
            return RECORD_WITH_IDS.pack(
                IDS_VERSION, 0, dst_pid, src_pid, IDS.size, dst_task, src_task, dst_unique, src_unique,
                MESSAGE_VERSION, message_type, dst_pid, src_pid, len(data),
            ) + data  # fmt: skip
        return RECORD.pack(MESSAGE_VERSION, message_type, dst_pid, src_pid, len(data)) + data
    except struct.error:
        dst.check()
        src.check()
        raise ValueError(f"message type {message_type} does not fit a record's 31 bits") from None


def pack_continuation(dst_pid: int, continuation: Continuation) -> bytes:
    """The version 3 record."""
    pid, unique_id, number, slot = continuation
    return RECORD.pack(CONTINUED_VERSION, 0, dst_pid, pid, CONTINUED.size) + CONTINUED.pack(unique_id, number, slot)


def pack_segment_start(dst_pid: int, src_pid: int, number: int) -> bytes:
    """The version 4 record."""
    return RECORD.pack(SEGMENT_VERSION, 0, dst_pid, src_pid, SEGMENT.size) + SEGMENT.pack(number)


def segment_number(value: bytes) -> int | None:
    """The number in the version 4 record that a value begins with, None if it does not."""
    if len(value) < SEGMENT_START_SIZE or RECORD.unpack_from(value)[0] != SEGMENT_VERSION:
        return None
    number: int = SEGMENT.unpack_from(value, RECORD.size)[0]
    return number


def record_starts(value: bytes) -> Iterator[int]:
    """Where the records of a value begin, as far as they are whole."""
    start = 0
    while start + RECORD.size <= len(value):
        yield start
        start += RECORD.size + RECORD.unpack_from(value, start)[4]


def count_messages(value: bytes) -> int:
    """The number of messages in a value."""
    return sum(RECORD.unpack_from(value, start)[0] == MESSAGE_VERSION for start in record_starts(value))


def holds(value: bytes, record: bytes) -> bool:
    """Whether a packed message is one of those in a value: with the same ids, or like it without."""
    has_ids = False
    for start in record_starts(value):
        if not has_ids and value.startswith(record, start):
            return True
        has_ids = RECORD.unpack_from(value, start)[0] == IDS_VERSION
    return False


class RecordDecoder:
    """Turns the value of the queue of process `pid` into messages and continuations.

    `source_of` gives the ServerID of task 0 of a pid, for records that come without ids.
    """

    _KNOWN_MAX = 1024

    def __init__(self, pid: int, source_of: Callable[[int], ServerID]) -> None:
        self._pid = pid
        self._source_of = source_of
        self._plain_dst = ServerID(pid)
        self._known: dict[tuple[int, bytes], tuple[ServerID, ServerID]] = {}

    def decode(self, value: bytes) -> tuple[list[Message], list[Special]]:
        """The messages of a value in order, and what else is in it; a record that cannot be read is skipped."""
        messages: list[Message] = []
        specials: list[Special] = []
        take, unpack, size = messages.append, RECORD.unpack_from, RECORD.size
        own_pid, plain_dst = self._pid, self._plain_dst
        plain_src: dict[int, ServerID] = {}
        ids: bytes | None = None
        start, end_of_value = 0, len(value)
        while start + size <= end_of_value:
            version, message_type, dst_pid, src_pid, length = unpack(value, start)
            end = start + size + length
            if end > end_of_value:
                break
            start += size
            if dst_pid != own_pid or src_pid <= 0 or message_type < 0:
                fault = f"a record of type {message_type} from pid {src_pid} to pid {dst_pid}"
                specials.append(Special(len(messages), MalformedMessage(fault)))
                ids = None
            elif version == MESSAGE_VERSION:
                if ids is None:
                    src = plain_src.get(src_pid)
                    if src is None:
                        src = plain_src[src_pid] = self._source_of(src_pid)
                    take(new_message(Message, (message_type, src, plain_dst, value[start:end], ())))
                else:
                    src, dst = self._addresses(src_pid, ids)
                    ids = None
                    take(new_message(Message, (message_type, src, dst, value[start:end], ())))
            elif version == IDS_VERSION and length == IDS.size:
                ids = value[start:end]
            elif version == CONTINUED_VERSION and length == CONTINUED.size:
                continuation = Continuation(src_pid, *CONTINUED.unpack_from(value, start))
                specials.append(Special(len(messages), continuation))
                ids = None
            elif version == SEGMENT_VERSION and length == SEGMENT.size:
                specials.append(Special(len(messages), SegmentStart(*SEGMENT.unpack_from(value, start))))
                ids = None
            else:
                fault = f"a record of version {version} with {length} bytes"
                specials.append(Special(len(messages), MalformedMessage(fault)))
                ids = None
            start = end
        if start < end_of_value:
            fault = f"{end_of_value - start} bytes at the end are no whole record"
            specials.append(Special(len(messages), MalformedMessage(fault)))
        return messages, specials

    def _addresses(self, src_pid: int, ids: bytes) -> tuple[ServerID, ServerID]:
        """Source and destination; the same few come again and again, so they are kept, up to a bound."""
        known = self._known.get((src_pid, ids))
        if known is None:
            if len(self._known) >= self._KNOWN_MAX:
                self._known.clear()
            dst_task, src_task, dst_unique, src_unique = IDS.unpack(ids)
            known = self._known[src_pid, ids] = (
                ServerID(src_pid, src_task, NONCLUSTER_VNN, src_unique),
                ServerID(self._pid, dst_task, NONCLUSTER_VNN, dst_unique),
            )
        return known
