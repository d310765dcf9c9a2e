# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Segments: records of bounded size in which a sender's messages continue when PID/<pid> is deep.

Rule 1. A sender announces a segment with a "continued" record at the end of the record in which its messages are now:
PID/<pid>, or the segment before.  Nothing of this sender goes behind that record until the receiver has taken it.

Rule 2. Each segment has a number that this process never uses twice, and begins with it.  The receiver takes a segment
only if it has the number that was announced.  So it never takes what a sender has put into a slot again while earlier
messages still wait in PID/<pid>.

Rule 3. A segment never outgrows its slot (messages_file.py, rule 1).  Slots are emptied, not deleted, and used again;
those in excess of SPARE_BYTES per destination are deleted, and all of a destination that has needed no segment for
IDLE seconds.

Rule 4. What is about to be appended is counted first.  If an exception comes in between (a full disk, a signal handler
that raises) the counts are too high, never too low.

Rule 5. That messages continue elsewhere is noted before the "continued" record is appended, and taken back only if the
file does not contain that record.  This keeps rule 1 when an exception comes in between.
"""

from __future__ import annotations

import itertools
import time
from collections import deque

from msgd.backends.tdb.messages_file import ROOM, MessagesFile
from msgd.wire.tdb_record import (
    CONTINUATION_SIZE,
    SEGMENT_START_SIZE,
    Continuation,
    pack_continuation,
    pack_segment_start,
    segment_key,
)

FIRST_ROOM = ROOM // 4
"""Bytes of room, or a multiple of it, of the segment with which a sender leaves PID/<pid>.

Most that leave have little to say: in a storm of 72 processes 6 KiB each at the worst moment.  Those that follow are
made for deep queues, with the room of other records (messages_file.ROOM).
"""

SPARE_BYTES = 4 << 20
"""Bytes of empty slots that are kept for each destination."""

IDLE = 1.0
"""Seconds for which a destination that needs no segments keeps its empty slots.

Of 20 MiB that 72 processes used at once in a storm, 12 MiB were empty slots, each of which nobody else could use.
"""

CHECK_AFTER = 16
"""Messages that a sender appends to a segment between two checks whether everything has been taken."""

_segment_numbers = itertools.count(1)


class Slot:
    """A record for segments, and the segment that is in it now.

    `room`: bytes that fit into the record, 0 until it is made.  `used`: bytes written since the segment began, taken or
    not.  `messages`, `bytes`: what the receiver is not known to have taken.
    """

    __slots__ = ("bytes", "index", "key", "messages", "number", "room", "used")

    def __init__(self, index: int, key: bytes) -> None:
        self.index = index
        self.key = key
        self.room = self.number = self.used = self.messages = self.bytes = 0

    def has_room(self, size: int) -> bool:
        """Whether a record of `size` bytes fits, and a "continued" record behind it."""
        return self.used + size + CONTINUATION_SIZE <= self.room

    @property
    def free(self) -> int:
        """Bytes that may be appended before the "continued" record."""
        return self.room - self.used - CONTINUATION_SIZE


class Slots:
    """The slots of this process for one destination."""

    def __init__(self, pid: int, source: tuple[int, int], file: MessagesFile) -> None:
        self._pid = pid
        self._source = source
        self._file = file
        self._number = 0
        self.spare: list[Slot] = []
        """Empty slots."""
        self._last_used = 0.0

    def note_use(self) -> None:
        """A segment begins, or all have been taken."""
        self._last_used = time.monotonic()

    def choose(self, size: int) -> Slot:
        """The smallest spare slot with room for a record of `size` bytes, or a new one that is not made yet."""
        fitting = [slot for slot in self.spare if slot.room >= SEGMENT_START_SIZE + size + CONTINUATION_SIZE]
        if fitting:
            return min(fitting, key=lambda slot: slot.room)
        return Slot(self._number, segment_key(self._pid, *self._source, self._number))

    def take(self, slot: Slot) -> bool:
        """Take the chosen slot; return whether it was a spare one, for put_back()."""
        self.note_use()
        was_spare = slot in self.spare
        if was_spare:
            self.spare.remove(slot)
        else:
            self._number += 1
        return was_spare

    def put_back(self, slot: Slot, was_spare: bool) -> None:
        """Undo take()."""
        if was_spare:
            self.spare.append(slot)
        else:
            self._number -= 1

    def make(self, slot: Slot, needed: int, unit: int) -> None:
        """Make the slot's record again, in multiples of `unit`, if it has less than `needed` bytes of room."""
        if needed > slot.room:
            slot.room = 0
            room = needed + -needed % unit
            with self._file.changing_space():
                self._file.make_record(slot.key, room)
            slot.room = room

    def delete_excess(self) -> None:
        """Delete the largest spare slots until at most SPARE_BYTES are left."""
        excess = sum(slot.room for slot in self.spare) - SPARE_BYTES
        if excess > 0:
            self.spare.sort(key=lambda slot: slot.room)
            with self._file.changing_space():
                while excess > 0:
                    slot = self.spare.pop()
                    excess -= slot.room
                    self._file.delete(slot.key, slot.room)

    def delete_idle(self) -> None:
        """Delete the spare slots if no segment has been needed for IDLE seconds."""
        if time.monotonic() - self._last_used > IDLE:
            self.delete_spare()

    def delete_spare(self) -> None:
        """Delete all spare slots."""
        if self.spare:
            spare, self.spare = self.spare, []
            with self._file.changing_space():
                for slot in spare:
                    self._file.delete(slot.key, slot.room)


class Segments:
    """The segments of this process's messages to one destination.  Its methods raise RuntimeError as libtdb does."""

    __slots__ = (
        "_file", "_pid", "_source", "_tdb", "announced", "bytes", "continuation", "messages", "since_check", "slots",
        "waiting",
    )  # fmt: skip

    def __init__(self, pid: int, source: tuple[int, int], file: MessagesFile) -> None:
        self.slots = Slots(pid, source, file)
        self.continuation = b""
        """The last "continued" record, if our messages go to segments; empty if they go to PID/<pid>."""
        self.announced: Slot | None = None
        """The segment that this record names, until it is begun."""
        self.waiting: deque[Slot] = deque()
        """The segments that are not known to be taken; the last one is open."""
        self.messages = self.bytes = 0
        """The sums over `waiting`."""
        self.since_check = 0
        """Messages that we have appended since check_taken() last checked."""
        self._pid = pid
        self._source = source
        self._file = file
        self._tdb = file.tdb

    def move(self) -> None:
        """Use the file that `file` has open now; it has none of our slots (moving.py)."""
        self._tdb = self._file.tdb
        self.slots.spare.clear()
        if self.announced is not None:
            self.announced.room = 0

    def announce(self, key: bytes, slot: Slot) -> None:
        """Append to the record `key` that our messages continue in this slot."""
        slot.number = next(_segment_numbers)
        record = pack_continuation(self._pid, Continuation(*self._source, slot.number, slot.index))
        before = self.continuation
        was_spare = self.slots.take(slot)
        self.continuation, self.announced = record, slot
        try:
            self._tdb.append(key, record)
        except BaseException:
            if record not in (self._tdb.get(key) or b""):
                self.continuation, self.announced = before, None
                self.since_check = CHECK_AFTER
                self.slots.put_back(slot, was_spare)
            raise

    def append(self, record: bytes) -> Slot:
        """Append to the open segment, which has room, or begin the announced one; return the segment."""
        if self.announced is not None:
            return self._begin(self.announced, record)
        slot = self.waiting[-1]
        self.count(slot, 1, len(record))
        self._tdb.append(slot.key, record)
        return slot

    def _begin(self, slot: Slot, record: bytes) -> Slot:
        value = pack_segment_start(self._pid, self._source[0], slot.number) + record
        self.slots.make(slot, len(value) + CONTINUATION_SIZE, ROOM if self.waiting else FIRST_ROOM)
        self._tdb.store(slot.key, value)
        slot.used = SEGMENT_START_SIZE
        self.count(slot, 1, len(record))
        self.announced = None
        self.waiting.append(slot)
        return slot

    def count(self, slot: Slot, messages: int, size: int) -> None:
        """Count messages in the open segment."""
        slot.used += size
        slot.messages += messages
        slot.bytes += size
        self.messages += messages
        self.bytes += size
        self.since_check += messages

    def check_taken(self, is_full: bool) -> bool:
        """Check whether the receiver has taken everything, and return whether it has.

        Returns False without a check unless the segment is full, or CHECK_AFTER messages have been appended since the
        last one.
        """
        if not self.waiting or not (is_full or self.since_check >= CHECK_AFTER):
            return False
        self.since_check = 0
        return not self._tdb.get(self.waiting[-1].key)

    def end(self) -> None:
        """Everything has been taken, and our messages go to PID/<pid> again.

        An exception in between can cost spare slots, and nothing else.
        """
        empty = [*self.waiting, *([] if self.announced is None else [self.announced])]
        self.continuation, self.announced, self.waiting = b"", None, deque()
        self.messages = self.bytes = 0
        for slot in empty:
            slot.messages = slot.bytes = 0
            self.slots.spare.append(slot)
        self.slots.note_use()

    def uncount_taken(self) -> bool:
        """Uncount what the receiver has taken in the meantime; return whether it has taken anything."""
        taken = False
        while len(self.waiting) > 1 and not self._tdb.get(self.waiting[0].key):
            self._uncount(self.waiting[0])
            self.slots.spare.append(self.waiting.popleft())
            taken = True
        if self.waiting[0].messages and not self._tdb.get(self.waiting[0].key):
            self._uncount(self.waiting[0])
            taken = True
        return taken

    def _uncount(self, slot: Slot) -> None:
        self.messages -= slot.messages
        self.bytes -= slot.bytes
        slot.messages = slot.bytes = 0
