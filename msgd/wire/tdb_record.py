# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The records of messages.tdb: those that Samba 3.0 writes, and those that only msgd writes.

The value of the key `PID/<pid>` NUL is a number of records, one after the other, unpadded, in native byte order: i32
version, i32 type, i32 destination pid, i32 source pid, u64 length of the data (24 bytes on a 64-bit machine), then the
data.  This is Samba 3.0's message_rec.  The version says what the record is:

1: a message.  This is all that Samba 3.0 knows.  It has room for pids only; the rest of both addresses goes into a
   version 2 record in front of it.

2: the ids of the version 1 record that follows immediately; both are appended in one step.  Data: u32 destination task
   id, u32 source task id, u64 destination unique id, u64 source unique id.  Samba 3.0 logs this record, skips it, and
   takes the message.

3: a continuation.  The next messages of this source are in the segment with this number, which is stored under the key
   `PID/<pid>/<source pid>/<unique>/<slot>` NUL.  Data: u64 source unique id, u64 segment number, u64 slot.

4: the start of a segment, always its first record.  Data: u64 segment number.  A slot holds one segment after another,
   each with a different number.  backends/tdb/segments.py explains what segments are for.

The key `msgd/space` NUL holds no messages.  It says whether a process is changing the file's free space; a process that
is killed while it does so leaves it saying so.  See backends/tdb/messages_file.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from msgd.errors import MalformedMessage
from msgd.native import native
from msgd.wire.header import Message, new_message
from msgd.wire.message_types import type_name
from msgd.wire.server_id import ANY_UNIQUE_ID, NONCLUSTER_VNN, ServerID

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
"""Bytes of a whole version 3 record, and of a whole version 4 record."""

SPACE_KEY = b"msgd/space\0"
SPACE_SOUND, SPACE_CHANGING = b"sound   ", b"changing"
"""The two values of SPACE_KEY."""

_U64_MAX = 0xFFFFFFFFFFFFFFFF

RECORD_TYPE_MAX = 0x7FFFFFFF
"""The largest message type: the record's type field is a signed int."""


class Continuation(NamedTuple):
    """A version 3 record: the segment in which the messages of a source continue."""

    pid: int
    unique_id: int
    number: int
    slot: int


class SegmentStart(NamedTuple):
    """A version 4 record: the number of the segment that begins here."""

    number: int


class LostMessage(NamedTuple):
    """A version 1 record for whose data there was no memory."""

    pid: int
    type: int
    length: int

    def __str__(self) -> str:
        return f"{type_name(self.type)} of {self.length} bytes from pid {self.pid}"


class Special(NamedTuple):
    """Something in a value that is not a message; `position` is the number of messages in front of it."""

    position: int
    what: Continuation | SegmentStart | LostMessage | MalformedMessage


def queue_key(pid: int) -> bytes:
    """The key of the record from which process `pid` takes its messages."""
    return b"PID/%d\0" % pid


def segment_key(pid: int, source_pid: int, source_unique_id: int, slot: int) -> bytes:
    """The key of one of the slots that hold the segments of a source's messages to `pid`."""
    return b"PID/%d/%d/%d/%d\0" % (pid, source_pid, source_unique_id, slot)


def key_source_pid(key: bytes) -> int | None:
    """The pid of the source whose segments are stored under this key; None if it is not the key of a slot."""
    parts = key.rstrip(b"\0").split(b"/")
    return int(parts[2]) if len(parts) == 5 and parts[2].isdigit() and len(parts[2]) < 11 else None


def segment_in(key: bytes, value: bytes) -> Continuation | None:
    """The continuation that leads to the segment that begins in this record; None if none begins there."""
    number, pid, parts = segment_number(value), key_source_pid(key), key.rstrip(b"\0").split(b"/")
    if number is None or pid is None or not all(one.isdigit() and len(one) <= 20 for one in parts[3:]):
        return None
    unique_id, slot = int(parts[3]), int(parts[4])
    return None if max(unique_id, slot) > _U64_MAX else Continuation(pid, unique_id, number, slot)


def key_pid(key: bytes) -> int | None:
    """The pid of the process whose messages are stored under this key; None for any other key."""
    prefix, _, rest = key.rstrip(b"\0").partition(b"/")
    pid = rest.partition(b"/")[0]
    return int(pid) if prefix == b"PID" and pid.isdigit() and len(pid) < 11 else None


def pack_message(dst: ServerID, src: ServerID, message_type: int, data: bytes) -> bytes:
    """The bytes of a message: a version 1 record, with a version 2 record in front of it if that is needed.

    It is not needed from task 0 to task 0 if the destination is addressed by its pid alone; Samba 3.0 then reads
    exactly what it would have written itself.  Raises ValueError if an id or the type does not fit its field.
    """
    dst_pid, dst_task, _, dst_unique = dst
    src_pid, src_task, _, src_unique = src
    try:
        if dst_task or src_task or dst_unique not in ANY_UNIQUE_ID:
            return RECORD_WITH_IDS.pack(
                IDS_VERSION, 0, dst_pid, src_pid, IDS.size, dst_task, src_task, dst_unique, src_unique,
                MESSAGE_VERSION, message_type, dst_pid, src_pid, len(data),
            ) + data  # fmt: skip
        return RECORD.pack(MESSAGE_VERSION, message_type, dst_pid, src_pid, len(data)) + data
    except struct.error:
        dst.check()
        src.check()
        raise ValueError(f"message type {message_type} does not fit a record's 31 bits") from None


def pack_messages(dst: ServerID, src: ServerID, messages: Sequence[tuple[int, bytes]]) -> bytes:
    """The bytes of messages of the same addresses, each a type and its data: those of pack_message(), joined.

    The ids and the types fit their fields, and the destination is not addressed by its pid alone.
    """
    dst_pid, dst_task, _, dst_unique = dst
    src_pid, src_task, _, src_unique = src
    ids = RECORD.pack(IDS_VERSION, 0, dst_pid, src_pid, IDS.size) + IDS.pack(dst_task, src_task, dst_unique, src_unique)
    pack, parts = RECORD.pack, list[bytes]()
    for message_type, data in messages:
        parts += (ids, pack(MESSAGE_VERSION, message_type, dst_pid, src_pid, len(data)), data)
    return b"".join(parts)


def without_ids(record: bytes) -> bytes:
    """A packed message without its ids, as Samba 3.0 would have written it."""
    return record[RECORD.size + IDS.size :] if RECORD.unpack_from(record)[0] == IDS_VERSION else record


def pack_continuation(dst_pid: int, continuation: Continuation) -> bytes:
    """The bytes of a version 3 record."""
    pid, unique_id, number, slot = continuation
    return RECORD.pack(CONTINUED_VERSION, 0, dst_pid, pid, CONTINUED.size) + CONTINUED.pack(unique_id, number, slot)


def pack_segment_start(dst_pid: int, src_pid: int, number: int) -> bytes:
    """The bytes of a version 4 record."""
    return RECORD.pack(SEGMENT_VERSION, 0, dst_pid, src_pid, SEGMENT.size) + SEGMENT.pack(number)


def segment_number(value: bytes) -> int | None:
    """The number of the segment that begins at the start of `value`; None if no segment begins there."""
    if len(value) < SEGMENT_START_SIZE or RECORD.unpack_from(value)[0] != SEGMENT_VERSION:
        return None
    number: int = SEGMENT.unpack_from(value, RECORD.size)[0]
    return number


def continuations_in(value: bytes) -> list[Continuation]:
    """The continuations in `value`, in order."""
    found = []
    for start in record_starts(value):
        version, _, _, pid, length = RECORD.unpack_from(value, start)
        if version == CONTINUED_VERSION and length == CONTINUED.size and start + CONTINUATION_SIZE <= len(value):
            found.append(Continuation(pid, *CONTINUED.unpack_from(value, start + RECORD.size)))
    return found


def record_starts(value: bytes) -> Iterator[int]:
    """The offset of each record in `value`; it stops at the first record whose head is incomplete."""
    start = 0
    while start + RECORD.size <= len(value):
        yield start
        start += RECORD.size + RECORD.unpack_from(value, start)[4]


def split_by_source(value: bytes, pid: int) -> tuple[bytes, bytes]:
    """The records in `value` whose source is process `pid`, and all others, each in their order."""
    own: list[bytes] = []
    others: list[bytes] = []
    end = 0
    for start in record_starts(value):
        source, length = RECORD.unpack_from(value, start)[3:]
        end = start + RECORD.size + length
        (own if source == pid else others).append(value[start:end])
    return b"".join(own), b"".join((*others, value[end:]))


def count_messages(value: bytes) -> int:
    """The number of messages in `value`."""
    return sum(RECORD.unpack_from(value, start)[0] == MESSAGE_VERSION for start in record_starts(value))


def holds(value: bytes, record: bytes) -> bool:
    """Whether `value` contains this packed message, with the same ids, or likewise without ids."""
    has_ids = False
    for start in record_starts(value):
        if not has_ids and value.startswith(record, start):
            return True
        has_ids = RECORD.unpack_from(value, start)[0] == IDS_VERSION
    return False


class RecordDecoder:
    """Turns the values that process `pid` takes into messages, continuations and segment starts.

    `source_of` returns the ServerID of task 0 of a pid.  It is called for messages without ids.
    """

    _KNOWN_MAX = 1024

    def __init__(self, pid: int, source_of: Callable[[int], ServerID]) -> None:
        self._pid = pid
        self._source_of = source_of
        self._plain_dst = ServerID(pid)
        self.addresses = None if native is None else native.Addresses(Message, ServerID)
        """For the compiled twins; None without them."""
        self._known: dict[tuple[int, bytes], tuple[ServerID, ServerID]] = {}

    def decode(self, value: bytes) -> tuple[list[Message], list[Special]]:
        """The messages in `value`, in order, and everything else in it.

        A record that cannot be read is skipped, and so is a message for which there is no memory.
        """
        messages: list[Message] = []
        specials: list[Special] = []
        take, unpack, size = messages.append, RECORD.unpack_from, RECORD.size
        own_pid, plain_dst = self._pid, self._plain_dst
        split = None if native is None else native.split_records
        plain_src: dict[int, ServerID] = {}
        ids: bytes | None = None
        start, end_of_value = 0, len(value)
        while start + size <= end_of_value:
            if split is not None and ids is None:
                start = split(self.addresses, own_pid, messages, value, start)
                if start + size > end_of_value:
                    break
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
                dst = plain_dst
                if ids is not None:
                    src, dst = self._addresses(src_pid, ids)
                    ids = None
                elif (src := plain_src.get(src_pid)) is None:  # type: ignore[assignment]
                    src = plain_src[src_pid] = self._source_of(src_pid)
                try:
                    take(new_message(Message, (message_type, src, dst, value[start:end], ())))
                except MemoryError:
                    specials.append(Special(len(messages), LostMessage(src_pid, message_type, length)))
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

    def decode_parts(self, read: Callable[[int, int], bytes], size: int) -> tuple[list[Message], list[Special]]:
        """Do what decode() does with a value of `size` bytes for which there is no memory: one record after the other.

        `read(length, place)` returns bytes of it.  A message for which there is no memory is skipped.
        """
        messages: list[Message] = []
        specials: list[Special] = []
        begin = start = 0
        while begin < size:
            head = read(RECORD.size, start)
            version, message_type, _, src_pid, length = (
                RECORD.unpack(head) if len(head) == RECORD.size else (0, 0, 0, 0, 0)
            )
            end = min(start + RECORD.size + length, size)
            if version == IDS_VERSION and length == IDS.size and end < size:
                start = end  # they are decoded with what follows them
                continue
            try:
                some_messages, some_specials = self.decode(read(end - begin, begin))
            except MemoryError:
                some_messages, some_specials = [], [Special(0, LostMessage(src_pid, message_type, length))]
            specials += [Special(len(messages) + position, what) for position, what in some_specials]
            messages += some_messages
            begin = start = end
        return messages, specials

    def _addresses(self, src_pid: int, ids: bytes) -> tuple[ServerID, ServerID]:
        """Source and destination of a message with ids.  Recent results are cached, up to a bound."""
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
