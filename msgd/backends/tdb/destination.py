"""A process as a destination of messages.tdb: whether it is there, and in which records our messages to it go.

Segments.  A process takes its messages from the record PID/<pid>; senders append to it.  tdb_append copies the value
it appends to, so a sender that finds the record deep does not make it deeper: it appends a "continued" record and puts
its further messages into segments of its own, of bounded size, each of which ends in a "continued" record when it is
full.  The receiver follows.  Once it has taken everything (the last segment is empty) the sender appends to PID/<pid>
again.  So all messages of a pair stay in order, each is in the file once, and every step costs the same at any depth.

Slots.  The records that segments are in are emptied, not deleted, and used again, but for what is more than a few
mebibytes for each pair.  A segment has a number that no other of its source has, and begins with it; the receiver takes
a segment only with the number it was led to, so it never takes what a source has put into an old slot after messages
that are still in PID/<pid>.

Counting.  What is about to be appended is counted first, so that an exception in between (a full disk, a signal's
handler) makes the counts too high and never too low: a segment never outgrows its slot.  That our messages go on
elsewhere is noted first, too, and taken back if the file does not say so then: nothing goes behind a "continued"
record, unless that has been taken.

Room.  PID/<pid> never has more in it than it has room for (messages_tdb.py says what that is good for).  A sender looks
how deep it is and appends in one step, under the lock of the record's chain: messages up to DEEP, and behind them only
"continued" records, one for each sender.  But a lock that is held costs the others a sleep.  So the receiver grants a
few of its sources, by their unique ids in words of its shared memory, that they need not have it: they look, and then
append QUOTA bytes at most until they look again; a look that finds no room ends the quota.  What is in the record is at
most DEEP at the last look that finds room, whosever it is; of what comes after it, each grant has one quota, and who
holds the lock one message that with what was there makes no more than DEEP.  "Continued" records come behind all that
until it is CROWDED.  The receiver takes a grant back only from the dead, and there is room for all of them.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import signal
import time
from collections import deque
from typing import NamedTuple

from msgd.backends.tdb.chain_lock import ChainLock
from msgd.backends.tdb.libtdb import missing_record
from msgd.backends.tdb.messages_file import ROOM, MessagesFile
from msgd.config import Config
from msgd.errors import NoSuchProcess, QueueFull, TransportError
from msgd.presence import Presence, Process
from msgd.presence.lock_file import lock_holder, map_words, shared_words
from msgd.wire.server_id import ServerID
from msgd.wire.tdb_record import (
    CONTINUATION_SIZE,
    RECORD,
    SEGMENT_START_SIZE,
    Continuation,
    holds,
    pack_continuation,
    pack_segment_start,
    queue_key,
    segment_key,
)

EPOCH = 0
"""The word that says since when a receiver has been asleep, or one of these two."""
AWAKE = 0
CLOSED = 0xFFFFFFFFFFFFFFFF

TAKING = 1
"""The word that is not 0 while a receiver empties a record."""
_TURNS = 200
"""How often a sender looks at that word at most, some ten microseconds: then the receiver has been interrupted."""

GRANTS = range(2, 8)
"""The words with the unique ids of the sources that have a grant; 0: nobody has this one."""
QUOTA = 2048
"""Bytes that each of these may append to PID/<pid> from one look at its depth to the next."""
DEEP = 8192
"""Bytes in PID/<pid> from which on a sender continues elsewhere."""
CROWDED = ROOM - (len(GRANTS) + 1) * QUOTA - CONTINUATION_SIZE
"""Bytes in it beyond which not even a "continued" record is appended: some two hundred senders have done so.

One quota more than there are grants: a grant may change hands between two takes.
"""

_LOOK_AT_SEGMENT_AFTER = 16
"""Messages that a sender appends to a segment between two looks whether everything has been taken."""
SPARE_BYTES = 4 << 20
"""Bytes of empty slots that are kept for each destination."""

DESCRIPTORS = 3
"""What a destination costs: its pidfd, its lock file, and the descriptor that Python's mmap keeps."""
_TRUST_ALIVE = 20e-6
"""Seconds for which a process seen alive counts as alive: less than anybody needs to see it die and tell."""

_segment_numbers = itertools.count(1)


class Bounds(NamedTuple):
    """How much may wait for one destination, in all and in PID/<pid>."""

    messages: int
    bytes: int
    plain_messages: int
    deep: int
    quota: int

    @classmethod
    def of(cls, config: Config) -> Bounds:
        """As they are configured."""
        messages, size = config.send_queue_messages, config.send_queue_bytes
        plain = messages // 2
        return cls(messages, size, plain, min(DEEP, size // 2), min(QUOTA, size // 4, plain * RECORD.size))


class Segment:
    """One of our slots, and what is in it of a segment in which messages to a destination go on.

    `room`: bytes that fit into the slot, 0 while it is not made; `used`: those written since the segment was begun,
    taken or not; `messages`, `bytes`: what is not known to be taken.
    """

    __slots__ = ("bytes", "key", "messages", "number", "room", "slot", "used")

    def __init__(self, slot: int, key: bytes) -> None:
        self.slot = slot
        self.key = key
        self.room = self.number = self.used = self.messages = self.bytes = 0

    def has_room(self, size: int) -> bool:
        """Whether a record of `size` bytes fits, and a "continued" one behind it."""
        return self.used + size + CONTINUATION_SIZE <= self.room


class Destination:
    """A process as a destination.  What is called with a record raises RuntimeError where libtdb does."""

    def __init__(
        self,
        process: Process,
        pidfd: int,
        words: memoryview,
        presence: Presence,
        file: MessagesFile,
        bounds: Bounds,
        memory: mmap.mmap | None = None,
        lock_fd: int = -1,
    ) -> None:
        self.pid = process.pid
        self.unique_id = process.unique_id
        self.server_id = ServerID(process.pid, unique_id=process.unique_id)
        self.key = queue_key(process.pid)
        self.words = words
        self.pidfd = pidfd
        self.rung_epoch = AWAKE
        """The epoch this sender has signalled for."""
        self.open_key = self.key
        """The record that our messages go to: PID/<pid>, or that of the open segment."""
        self.quota = 0
        """Bytes that may be appended there until append_with_care() is needed again; 0 if it is in any case."""
        self.unlooked = self.unlooked_bytes = 0
        """What has been, beginning with the message for which we looked at PID/<pid>, or without that in a segment."""
        self.appended = self.appended_bytes = 0
        """Upper bounds of what was ours in PID/<pid> at that look."""
        self.continuation = b""
        """The last "continued" record, if our messages go on in segments; empty if they go to PID/<pid>."""
        self.announced: Segment | None = None
        """The segment which that record names, while it has not been begun."""
        self.segments: deque[Segment] = deque()
        """Those not known to be taken; the last one is the open one."""
        self.unlooked_in_segment = 0
        """Messages that we appended to it since we last looked whether it is empty."""
        self.spare: list[Segment] = []
        """Empty slots."""
        self.segments_messages = self.segments_bytes = 0
        self._own = presence.pid, presence.unique_id
        self._file = file
        self._tdb = file.tdb
        self._chain: ChainLock | None = None
        self._depth = 0
        """Bytes in PID/<pid> when we last looked."""
        self._bounds = bounds
        self._granted = False
        self._slots = 0
        """Number of slots that have been made."""
        self._memory = memory
        self._lock_fd = lock_fd
        self._seen_alive = 0.0

    # Whether it is there

    def lives(self) -> bool:
        """Whether the process is there and has not closed its endpoint."""
        if self.words[EPOCH] == CLOSED:
            return False
        now = time.monotonic()
        if now - self._seen_alive > _TRUST_ALIVE:
            if not self._holds_lock():
                return False
            self._seen_alive = now
        return True

    def _holds_lock(self) -> bool:
        """Whether the process is still there and has not become another program."""
        return self._lock_fd < 0 or lock_holder(self._lock_fd) == self.pid

    def ring_if_asleep(self) -> None:
        """Signal a receiver that said it was about to sleep, once for each time it said so."""
        epoch = self.words[EPOCH]
        if epoch not in (AWAKE, CLOSED, self.rung_epoch):
            with contextlib.suppress(ProcessLookupError):
                if self._holds_lock():
                    signal.pidfd_send_signal(self.pidfd, signal.SIGUSR1)
            self.rung_epoch = epoch

    def let_it_take(self) -> None:
        """Turn until the receiver has emptied the record that it is at."""
        words = self.words
        for _ in range(_TURNS):
            if not words[TAKING]:
                return

    def close(self) -> None:
        """Let go of the process."""
        os.close(self.pidfd)
        if self._memory is not None:
            self.words.release()
            self._memory.close()
            os.close(self._lock_fd)

    # Appending

    def append_with_care(self, record: bytes) -> None:
        """Append to PID/<pid> while that is not deep, else to a segment, and set the quota.  Raises QueueFull."""
        self._book_unlooked()
        segment = self.segments[-1] if self.segments else None
        is_full = segment is not None and not segment.has_room(len(record))
        if segment is not None and (is_full or self.unlooked_in_segment >= _LOOK_AT_SEGMENT_AFTER):
            self.unlooked_in_segment = 0
            if not self._tdb.get(segment.key):
                self._come_back()
                self._give_back()
        if not self.continuation:
            if self._append_to_queue(record):
                return
        elif segment is not None and is_full and self.announced is None:
            self._continue_in(segment.key, self._free_slot(len(record)))
            self._give_back()
        self._check_room(len(record))
        if self.announced is not None:
            segment = self._begin_segment(self.announced, record)
        else:
            segment = self.segments[-1]
            self._book(segment, 1, len(record))
            self._tdb.append(segment.key, record)
        messages, waiting_bytes = self._waiting()
        self.quota = min(
            QUOTA,
            segment.room - segment.used - CONTINUATION_SIZE,
            self._bounds.bytes - waiting_bytes,
            (self._bounds.messages - messages) * RECORD.size,
        )
        self.open_key = segment.key

    def _book_unlooked(self) -> None:
        """Book what was appended to the open segment by the way."""
        if self.open_key is not self.key:
            self._book(self.segments[-1], self.unlooked, self.unlooked_bytes)
            self.unlooked = self.unlooked_bytes = self.quota = 0

    def _book(self, segment: Segment, messages: int, size: int) -> None:
        segment.used += size
        segment.messages += messages
        segment.bytes += size
        self.segments_messages += messages
        self.segments_bytes += size
        self.unlooked_in_segment += messages

    def _append_to_queue(self, record: bytes) -> bool:
        """Append to PID/<pid>, or that our messages go on elsewhere; whether the record has been."""
        size = len(record)
        if self._granted and size <= self._bounds.quota and self._has_queue_room(size):
            self._append_behind_look(record)
            return True
        if self._chain is None:
            self._chain = self._file.chains.of(self.key)
        try:
            self._chain.lock()
            if self._has_queue_room(size):
                self._granted = self._granted or self._own[1] in self.words[GRANTS.start : GRANTS.stop].tolist()
                self._append_behind_look(record)
                return True
            if self._depth > CROWDED:
                raise QueueFull(f"pid {self.pid} does not read: the messages of too many processes wait for it")
            self._continue_in(self.key, self._free_slot(size))
        finally:
            self._chain.release()
        return False

    def _has_queue_room(self, size: int) -> bool:
        """Look how deep PID/<pid> is, and whether a record of `size` bytes may go there."""
        value = self._tdb.get(self.key)
        if value is None:
            raise self._without_record()
        self._look(len(value))
        return self._depth + size <= self._bounds.deep and self.appended < self._bounds.plain_messages

    def _without_record(self) -> Exception:
        """What it means that PID/<pid> is not there."""
        if self.words[EPOCH] == CLOSED or not self._holds_lock():
            return NoSuchProcess(f"process {self.server_id} has ended")
        return missing_record()

    def _append_behind_look(self, record: bytes) -> None:
        self.unlooked, self.unlooked_bytes = 1, len(record)
        self._tdb.append(self.key, record)
        self.quota = self._bounds.quota if self._granted else 0

    def _free_slot(self, size: int) -> Segment:
        """The smallest empty slot that has room for a record of `size` bytes, or one that is to be made."""
        fitting = [slot for slot in self.spare if slot.room >= SEGMENT_START_SIZE + size + CONTINUATION_SIZE]
        if fitting:
            return min(fitting, key=lambda slot: slot.room)
        return Segment(self._slots, segment_key(self.pid, *self._own, self._slots))

    def _continue_in(self, key: bytes, slot: Segment) -> None:
        """Say at the end of the record `key` in which slot our messages go on."""
        if self.segments:
            self.forget_taken()
        slot.number = next(_segment_numbers)
        record = pack_continuation(self.pid, Continuation(*self._own, slot.number, slot.slot))
        was_spare, before = slot in self.spare, self.continuation
        if was_spare:
            self.spare.remove(slot)
        else:
            self._slots += 1
        self.quota = 0
        self.continuation, self.announced = record, slot
        try:
            self._tdb.append(key, record)
        except BaseException:
            if record not in (self._tdb.get(key) or b""):
                self.continuation, self.announced = before, None
                self.unlooked_in_segment = _LOOK_AT_SEGMENT_AFTER
                if was_spare:
                    self.spare.append(slot)
                else:
                    self._slots -= 1
            raise

    def _begin_segment(self, segment: Segment, record: bytes) -> Segment:
        """Put the first record into a segment that has been announced."""
        value = pack_segment_start(self.pid, self._own[0], segment.number) + record
        needed = len(value) + CONTINUATION_SIZE
        if needed > segment.room:
            segment.room = 0
            room = needed + -needed % ROOM
            with self._file.changing_space():
                self._file.make_record(segment.key, room)
            segment.room = room
        self._tdb.store(segment.key, value)
        segment.used = SEGMENT_START_SIZE
        self._book(segment, 1, len(record))
        self.announced = None
        self.segments.append(segment)
        return segment

    def _give_back(self) -> None:
        """Delete the largest of the empty slots, as far as they are more than are kept."""
        excess = sum(slot.room for slot in self.spare) - SPARE_BYTES
        if excess > 0:
            self.spare.sort(key=lambda slot: slot.room)
            with self._file.changing_space():
                while excess > 0:
                    slot = self.spare.pop()
                    excess -= slot.room
                    self._file.delete(slot.key)

    def _come_back(self) -> None:
        """Everything has been taken: go on in PID/<pid>.  An interrupt may cost us slots, and nothing else."""
        empty = [*self.segments, *([] if self.announced is None else [self.announced])]
        self.continuation, self.open_key, self.announced, self.segments = b"", self.key, None, deque()
        self.segments_messages = self.segments_bytes = 0
        for slot in empty:
            slot.messages = slot.bytes = 0
            self.spare.append(slot)
        self._look(0)

    # What waits

    def is_pending(self, record: bytes) -> bool:
        """Whether an identical message of ours is in the file."""
        keys = (self.key, *(segment.key for segment in self.segments))
        return any(holds(self._tdb.get(key) or b"", record) for key in keys)

    def forget_taken(self) -> bool:
        """Strike out what has been taken since, first what is in PID/<pid>; whether there was any."""
        self._book_unlooked()
        if not self.continuation:
            return len(self._tdb.get(self.key) or b"") <= CROWDED
        if not self.segments:
            taken = self.continuation not in (self._tdb.get(self.key) or b"")
        else:
            taken = False
            while len(self.segments) > 1 and not self._tdb.get(self.segments[0].key):
                self._strike_out(self.segments[0])
                self.spare.append(self.segments.popleft())
                taken = True
            if self.segments[0].messages and not self._tdb.get(self.segments[0].key):
                self._strike_out(self.segments[0])
                taken = True
        if taken:
            self._look(0)
        return taken

    def _check_room(self, length: int) -> None:
        """Raise QueueFull if `length` bytes more are past the bound; into an empty queue any message goes."""
        if self._has_room(length):
            return
        self.forget_taken()
        if not self._has_room(length):
            messages, waiting_bytes = self._waiting()
            raise QueueFull(
                f"pid {self.pid} does not read: {messages} messages ({waiting_bytes} bytes) wait for it, the bound is"
                f" {self._bounds.messages} messages and {self._bounds.bytes} bytes"
            )

    def _has_room(self, length: int) -> bool:
        messages, waiting_bytes = self._waiting()
        return not messages or (messages < self._bounds.messages and waiting_bytes + length <= self._bounds.bytes)

    def _waiting(self) -> tuple[int, int]:
        """Upper bounds of our messages, and their bytes, that it has not taken."""
        return (
            self.appended + self.unlooked + self.segments_messages,
            self.appended_bytes + self.unlooked_bytes + self.segments_bytes,
        )

    def _strike_out(self, segment: Segment) -> None:
        """The segment has been taken, as far as we had written it."""
        self.segments_messages -= segment.messages
        self.segments_bytes -= segment.bytes
        segment.messages = segment.bytes = 0

    def _look(self, depth: int) -> None:
        """Take in that PID/<pid> has `depth` bytes now."""
        self._depth = depth
        self.appended = min(self.appended + self.unlooked, depth // RECORD.size)
        self.appended_bytes = min(self.appended_bytes + self.unlooked_bytes, depth)
        self.unlooked = self.unlooked_bytes = self.quota = 0


def open_destination(
    dst: ServerID, presence: Presence, own_words: memoryview, file: MessagesFile, bounds: Bounds
) -> Destination:
    """The process that has the pid of `dst` now.  Raises NoSuchProcess, TransportError.

    The pidfd is opened before the lock file is found locked by that pid, with the unique id of the address: a pid that
    is reused later has another pidfd and another lock file.
    """
    try:
        pidfd = os.pidfd_open(dst.pid)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise TransportError(f"sending to {dst}: {error.strerror}") from error
        raise NoSuchProcess(f"no process {dst}") from None
    if dst.pid == presence.pid:
        return Destination(Process(dst.pid, presence.unique_id), pidfd, own_words, presence, file, bounds)
    try:
        mapped = map_words(presence.lock_dir_fd, dst.pid)
        if mapped is None:
            raise NoSuchProcess(f"no process {dst} takes messages of type tdb here")
    except OSError as error:
        os.close(pidfd)
        raise TransportError(f"sending to {dst}: {error.strerror}") from error
    except BaseException:
        os.close(pidfd)
        raise
    process, memory, lock_fd = mapped
    words = shared_words(memory)
    destination = Destination(process, pidfd, words, presence, file, bounds, memory, lock_fd)
    try:
        if not destination.lives():
            raise NoSuchProcess(f"process {dst} has closed its endpoint")
        signal.pidfd_send_signal(pidfd, 0)
    except BaseException as error:
        destination.close()
        if isinstance(error, PermissionError):
            raise TransportError(f"sending to {dst}: it is another user's, who cannot be signalled") from error
        if isinstance(error, ProcessLookupError):
            raise NoSuchProcess(f"no process {dst}") from None
        raise
    return destination
