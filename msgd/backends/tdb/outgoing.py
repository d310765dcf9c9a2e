# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Our messages to one destination: which record the next one goes to, and how many wait.

Rule 1. A process takes its messages from the record PID/<pid>, and every sender appends to it.  libtdb copies the whole
old value for each append, so the record must stay short: up to DEEPEST bytes of messages (grants.py).

Rule 2. A sender that finds the record deep continues in segments of its own (segments.py).  As soon as the sender has
seen that the receiver has taken everything, it goes back to PID/<pid>.  It checks that only every CHECK_AFTER messages,
and when a segment is full.  So messages between two processes stay in order, each is in the file once, and a message
costs the same however deep the queue is.

Rule 3. What a dead sender has sent still arrives: nothing waits in the sender's own memory.

Rule 4. The number and the bytes of our messages that wait are bounded.  We know upper bounds of both.  What we append
is counted first; it is uncounted only when we have seen that the receiver has taken it.

The quota makes the common case cheap.  As long as it lasts, append() appends without looking at anything.  In
PID/<pid> it is the quota of grants.py; in a segment it also ends where the segment or the bounds end.
"""

from __future__ import annotations

from typing import NamedTuple

from msgd.backends.kept_memory import LONG, keep_memory
from msgd.backends.tdb.chain_lock import ChainLock
from msgd.backends.tdb.destination import Destination
from msgd.backends.tdb.grants import CROWDED, DEEP, DEEPEST, QUOTA, has_grant
from msgd.backends.tdb.libtdb import missing_record
from msgd.backends.tdb.messages_file import Before, MessagesFile
from msgd.backends.tdb.segments import Segments, Slot
from msgd.backends.tdb.words import FILE
from msgd.config import Config
from msgd.errors import NoSuchProcess, QueueFull
from msgd.wire.tdb_record import RECORD, holds, queue_key


class Bounds(NamedTuple):
    """How many messages and bytes may wait for one destination: in all, and in PID/<pid>.

    `granted_bytes`: the bytes in PID/<pid> beyond which a sender with a grant appends nothing.
    """

    messages: int
    bytes: int
    record_messages: int
    record_bytes: int
    quota: int
    granted_bytes: int

    @classmethod
    def of(cls, config: Config) -> Bounds:
        """The configured bounds."""
        messages, size = config.send_queue_messages, config.send_queue_bytes
        in_record = messages // 2
        quota = min(QUOTA, size // 4, in_record * RECORD.size)
        return cls(messages, size, in_record, min(DEEPEST, size // 2), quota, min(DEEP, size // 2))


class Outgoing:
    """Our messages to one destination.  Methods that take a packed message raise RuntimeError as libtdb does."""

    __slots__ = (
        "_bounds", "_chain", "_depth", "_file", "_has_grant", "_in_record", "_in_record_bytes", "_pid", "_tdb",
        "_unique_id", "destination", "key", "open_key", "quota", "segments", "unchecked", "unchecked_bytes",
    )  # fmt: skip

    def __init__(self, destination: Destination, source: tuple[int, int], file: MessagesFile, bounds: Bounds) -> None:
        """`source` is the pid and the unique id of this process."""
        self.destination = destination
        self.key = queue_key(destination.pid)
        self.open_key = self.key
        """The record that our next message goes to: PID/<pid> or the open segment."""
        self.quota = 0
        """Bytes that append() may append to that record without a check, `unchecked_bytes` included."""
        self.unchecked = self.unchecked_bytes = 0
        """Messages and bytes appended to it since the last check."""
        self.segments = Segments(destination.pid, source, file)
        self._in_record = self._in_record_bytes = 0
        """Upper bounds of our messages and bytes in PID/<pid> at the last check of its depth."""
        self._depth = 0
        """Its depth then: everybody's bytes in it."""
        self._pid, self._unique_id = source
        self._has_grant = False
        self._file = file
        self._tdb = file.tdb
        self._chain: ChainLock | None = None
        self._bounds = bounds

    def append(self, record: bytes) -> None:
        """Append a packed message to PID/<pid> or to a segment.  Raises QueueFull, NoSuchProcess."""
        unchecked_bytes = self.unchecked_bytes + len(record)
        if unchecked_bytes <= self.quota:
            self.unchecked += 1
            self.unchecked_bytes = unchecked_bytes
            self._tdb.append(self.open_key, record)
        else:
            self.append_checked(record)

    def append_batch(self, records: bytes, messages: int) -> bool:
        """Append so many packed messages to PID/<pid> as append() appends one: all of them in one step.

        Returns False, and has appended nothing, if there is no room for all of them or if our messages go to segments.
        Raises NoSuchProcess.
        """
        if self.segments.continuation:
            return False
        chain = self._chain_of_record()
        try:
            chain.lock()
            return self._append_if_room(records, messages)
        finally:
            chain.release()

    def append_checked(self, record: bytes) -> None:
        """Append as append() does, but first check where there is room; then set the quota."""
        self._count_unchecked()
        segments, size = self.segments, len(record)
        if size > LONG:
            keep_memory()
        is_full = bool(segments.waiting) and not segments.waiting[-1].has_room(size)
        if segments.check_taken(is_full):
            self._go_back_to_record()
        if not segments.continuation:
            if self._append_to_record(record):
                return
        elif is_full and segments.announced is None:
            self._continue_in_segment(segments.waiting[-1].key, size)
            segments.slots.delete_excess()
        self._check_bounds(size)
        slot = segments.append(record)
        self.quota = self._quota_in(slot)
        self.open_key = slot.key

    def _count_unchecked(self) -> None:
        """Count what append() has put into the open segment."""
        if self.open_key is not self.key:
            self.segments.count(self.segments.waiting[-1], self.unchecked, self.unchecked_bytes)
            self.unchecked = self.unchecked_bytes = self.quota = 0

    def _quota_in(self, slot: Slot) -> int:
        messages, waiting_bytes = self._waiting()
        in_bounds = (self._bounds.messages - messages) * RECORD.size
        return min(QUOTA, slot.free, self._bounds.bytes - waiting_bytes, in_bounds)

    # PID/<pid>

    def _append_to_record(self, record: bytes) -> bool:
        """Append to PID/<pid>, or announce a segment there.  Returns whether the record was appended."""
        size = len(record)
        if self._has_grant and size <= self._bounds.quota and self._has_record_room(size):
            self._append_after_check(record)
            return True
        chain = self._chain_of_record()
        try:
            chain.lock()
            if self._append_if_room(record):
                return True
            if self._depth > CROWDED:
                pid = self.destination.pid
                raise QueueFull(f"pid {pid} does not read: the messages of too many processes wait for it")
            self._continue_in_segment(self.key, size)
        finally:
            chain.release()
        return False

    def _chain_of_record(self) -> ChainLock:
        if self._chain is None:
            self._chain = self._file.chains.of(self.key)
        return self._chain

    def _append_if_room(self, records: bytes, messages: int = 1) -> bool:
        """Under the lock of PID/<pid>: append there if there is room for it; return whether there was."""
        if not self._has_record_room(len(records), messages):
            return False
        self._has_grant = self._has_grant or has_grant(self.destination.words, self._unique_id)
        self._append_after_check(records, messages)
        return True

    def _has_record_room(self, size: int, messages: int = 1) -> bool:
        """Check the depth of PID/<pid>.  Returns whether so many messages of `size` bytes in all may go there."""
        value = self._tdb.get(self.key)
        if value is None:
            if self.destination.has_ended():
                raise NoSuchProcess(f"process {self.destination.server_id} has ended")
            raise missing_record()
        self._take_note(len(value))
        bounds, in_record = self._bounds, self._in_record + messages
        most = bounds.granted_bytes if self._has_grant else bounds.record_bytes
        return self._depth + size <= most and in_record <= bounds.record_messages

    def _append_after_check(self, records: bytes, messages: int = 1) -> None:
        self.unchecked, self.unchecked_bytes = messages, len(records)
        self._tdb.append(self.key, records)
        self.quota = self._bounds.quota if self._has_grant else 0

    def _take_note(self, depth: int) -> None:
        """Note that PID/<pid> holds `depth` bytes now.  This ends the quota."""
        self._depth = depth
        self._in_record = min(self._in_record + self.unchecked, depth // RECORD.size)
        self._in_record_bytes = min(self._in_record_bytes + self.unchecked_bytes, depth)
        self.unchecked = self.unchecked_bytes = self.quota = 0

    def _continue_in_segment(self, key: bytes, size: int) -> None:
        if self.segments.waiting:
            self.uncount_taken()  # a slot that has been taken may be the one to choose
        self.segments.announce(key, self.segments.slots.choose(size))

    def _go_back_to_record(self) -> None:
        """The receiver has taken everything."""
        self.open_key = self.key
        self.segments.end()
        self._take_note(0)
        self.segments.slots.delete_excess()

    def may_be_forgotten(self) -> bool:
        """Whether nothing of ours can wait in segments; then none of our slots is in the file any more."""
        if self.segments.continuation:
            self._count_unchecked()
            if not self.segments.check_taken(is_full=True):
                return False
            self._go_back_to_record()
        self.segments.slots.delete_spare()
        return True

    # Another file

    def move(self, before: Before) -> None:
        """Append to another file from now on (moving.py).  A second call does no harm."""
        file, segments = self._file, self.segments
        self._tdb, self._chain = file.tdb, None
        self._count_unchecked()
        self.quota = 0
        if not before.is_sound:
            self._go_back_to_record()
        segments.move()
        with file.changing_space():
            file.ensure_record(self.key)
            for slot in segments.waiting:
                file.ensure_record(slot.key, slot.room)
        if before.is_sound and self.destination.words[FILE] != before.inode[1]:
            keys = (self.key, *(slot.key for slot in segments.waiting))
            if sum(file.carry_over(before, key, self._pid) for key in keys):
                self.destination.wake_up()

    # What waits

    def is_pending(self, record: bytes) -> bool:
        """Whether an identical message of ours is in the file."""
        keys = (self.key, *(slot.key for slot in self.segments.waiting))
        return any(holds(self._tdb.get(key) or b"", record) for key in keys)

    def uncount_taken(self) -> bool:
        """Uncount what the receiver has taken in the meantime; return whether there may be room now."""
        self._count_unchecked()
        segments = self.segments
        if not segments.continuation:
            return len(self._tdb.get(self.key) or b"") <= CROWDED
        if segments.waiting:
            taken = segments.uncount_taken()
        else:
            taken = segments.continuation not in (self._tdb.get(self.key) or b"")
        if taken:  # then what was in PID/<pid> before the segments has been taken, too
            self._take_note(0)
        return taken

    def _check_bounds(self, size: int) -> None:
        """Raise QueueFull if `size` bytes more exceed the bounds; one message of any size may always wait."""
        if self._is_within_bounds(size):
            return
        self.uncount_taken()
        if not self._is_within_bounds(size):
            messages, waiting_bytes = self._waiting()
            raise QueueFull(
                f"pid {self.destination.pid} does not read: {messages} messages ({waiting_bytes} bytes) wait for it,"
                f" the bound is {self._bounds.messages} messages and {self._bounds.bytes} bytes"
            )

    def _is_within_bounds(self, size: int) -> bool:
        messages, waiting_bytes = self._waiting()
        return not messages or (messages < self._bounds.messages and waiting_bytes + size <= self._bounds.bytes)

    def _waiting(self) -> tuple[int, int]:
        """Upper bounds of our messages, and of their bytes, that the receiver has not taken."""
        return (
            self._in_record + self.unchecked + self.segments.messages,
            self._in_record_bytes + self.unchecked_bytes + self.segments.bytes,
        )
