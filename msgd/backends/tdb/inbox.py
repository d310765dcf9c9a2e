# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The receiving side: taking our messages out of the file, and following the sources that continue in segments.

A source is a process that has sent to us.

Rule 1. A record is read and emptied in one step, under the lock of its chain (chain_lock.py).  That takes the lock
once, whatever the number of messages.  The lock of PID/<pid> is taken only if there is something in it.

Rule 2. While it holds the lock, the receiver says so in its word TAKING, and a sender that sees this spins for a moment
instead of blocking on the mutex.  That is only a hint; the lock decides.

Rule 3. A "continued" record makes its source be followed: from now on the segment that it names is checked, too.  A
message of that source that comes through PID/<pid> again ends that: the source goes back to PID/<pid> only after
everything in its segments has been taken (outgoing.py).

Rule 4. A segment is taken only if its number is the announced one (segments.py, rule 2).

Rule 5. When something has been taken that a source may be waiting for, the source is woken up.  A source announces its
first segment in PID/<pid>, so we know of it; when PID/<pid> was crowded, there may be more that could not even announce
one, so everybody is woken up.

Rule 6. The slots of a source that has ended are deleted as soon as the last of them has been emptied.  Nobody else
would do so before the next clean-up, and many short-lived senders would make the file grow.

Rule 7. A record that does not fit into memory whole is read from the file in parts, under the lock over the whole file.
A message that does not even fit by itself is dropped and counted; what is behind it arrives.

Rule 8. An exception from a signal handler, wherever it comes, leaves no lock held, and loses and doubles no message.  A
value is noted in `_taken` before its record is emptied, and it counts once the record has been emptied.  It is
forgotten only after its messages have been moved on.  Where two steps must be one (to empty the record and to note
that, to take a message out of one queue and to put it into the next), they are one call into C: Python runs signal
handlers between two instructions of the interpreter only, never within such a call.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from msgd.backends.at_once import move_all
from msgd.backends.kept_memory import LONG, keep_memory
from msgd.backends.spin import Spinner
from msgd.backends.tdb.chain_lock import ChainLock
from msgd.backends.tdb.destinations import Destinations
from msgd.backends.tdb.grants import CROWDED, Grants
from msgd.backends.tdb.libtdb import missing_record
from msgd.backends.tdb.messages_file import MessagesFile
from msgd.backends.tdb.words import TAKING
from msgd.drops import Drops
from msgd.errors import TransportError
from msgd.native import native
from msgd.presence import Presence
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID
from msgd.wire.tdb_record import (
    SEGMENT_START_SIZE,
    Continuation,
    LostMessage,
    RecordDecoder,
    SegmentStart,
    Special,
    queue_key,
    segment_key,
    segment_number,
)
from msgd.wire.tdb_space import find_value

CHECK_INTERVAL = 1.0
"""Seconds between two checks whether a source whose segment is empty is still alive."""


class Source:
    """A source that continues in segments, and the segment that is to be taken next.

    `is_begun`: whether the start of that segment has been taken already.  `slots`: the keys of all segments that the
    source is known to have had.
    """

    __slots__ = ("is_begun", "key", "number", "seen_alive", "server_id", "slots")

    def __init__(self, server_id: ServerID, key: bytes, number: int, slots: set[bytes]) -> None:
        self.server_id = server_id
        self.key = key
        self.number = number
        self.slots = slots
        slots.add(key)
        self.is_begun = False
        self.seen_alive = time.monotonic()

    def owns(self, value: bytes) -> bool:
        """Whether the contents of the slot belong to the segment that is to be taken."""
        number = segment_number(value)
        return self.is_begun and bool(value) if number is None else number == self.number


class Taken:
    """A value that has been read from a record; `source`: whose segment it was, None if it was in PID/<pid>.

    `decoded` is what it holds, if it was read in parts; then `value` is empty.  `emptied` contains something once the
    record has been emptied.  `messages` are those that have not been moved to the inbox, None as long as the value has
    not been decoded.
    """

    __slots__ = ("decoded", "emptied", "messages", "source", "value")

    def __init__(
        self, value: bytes, source: Source | None, decoded: tuple[list[Message], list[Special]] | None = None
    ) -> None:
        self.value = value
        self.decoded = decoded
        self.source = source
        self.emptied: list[object] = []
        self.messages: deque[Message] | None = None


class Inbox:
    """Our messages.  Methods raise RuntimeError as libtdb does."""

    def __init__(
        self, presence: Presence, words: memoryview, file: MessagesFile, destinations: Destinations, drops: Drops
    ) -> None:
        self.messages: deque[Message] = deque()
        """What has been taken and not been delivered."""
        self.sources: dict[tuple[int, int], Source] = {}
        """The sources that continue in segments, by pid and unique id."""
        self._taken: Taken | None = None
        """What has been taken from the file and not been sorted yet."""
        self._presence = presence
        self._words = words
        self._file = file
        self._tdb = file.tdb
        self._key = queue_key(presence.pid)
        self._chain = file.chains.of(self._key)
        self._decoder = RecordDecoder(presence.pid, destinations.server_id_of)
        self._destinations = destinations
        self._grants = Grants(words, presence)
        self._drops = drops
        self._own = (
            native.OwnRecord(file.compiled, self._decoder.addresses, self._key, words, presence.pid, CROWDED)
            if file.compiled is not None
            else None
        )
        """The compiled twin of the plain part of has_messages() and take(), None without one."""

    def has_messages(self) -> bool:
        """Whether there is something to take or to deliver."""
        if self.messages or self._taken:
            return True
        found = None if self._own is None else self._own.poll(1)
        if found or (found is None and self._tdb.get(self._key)):
            return True
        return bool(self.sources) and any(map(self._has_segment, self.sources.values()))

    def spin(self, has_messages: Callable[[], bool], spinner: Spinner) -> bool:
        """Look for something to take until there is, as often as the spinner says; has_messages() looks."""
        if self._own is not None and not (self.messages or self._taken or self.sources):
            found = spinner.many(self._own.poll)
            if found is not None:
                return bool(found)
        return bool(spinner(has_messages))

    def take_plain(self, deliver: Callable[[Message], object], times: int) -> bool:
        """Do what take() does, and pass on the messages, which `deliver` keeps, so many times and while they are plain.

        Returns whether there was nothing else; if not, take() is to be called.
        """
        own = self._own
        if own is None or self.messages or self._taken or self.sources:
            return False
        source: ServerID | bool | None = own.take(deliver, times)
        if own.lost:
            lost, own.lost = own.lost, 0
            self._drops("no memory left", "messages in messages.tdb", lost)
        if isinstance(source, ServerID) and source.unique_id not in self._grants.given:
            self._grants.give(source)
        return source is not None

    def take(self) -> bool:
        """Move what is in the file to `messages`; return whether there is anything in `messages`."""
        if self._taken:
            self._sort()
        value = self._tdb.get(self._key)
        if value:
            self._take_value(self._key, self._chain, None)
            self._sort()
        elif value is None:
            raise missing_record()
        for source in list(self.sources.values()):
            self._take_segment(source)
        return bool(self.messages)

    def drain(self) -> bool:
        """Move all that is in the file to `messages`; return whether all could be read."""
        before = -1
        try:
            while len(self.messages) != before:
                before = len(self.messages)
                self.take()
        except RuntimeError:
            return False
        return True

    def move(self, *, is_lost: bool) -> None:
        """Take from another file from now on (moving.py); `is_lost`: what waited in the last one cannot be read."""
        self._tdb = self._file.tdb
        self._chain = self._file.chains.of(self._key)
        if is_lost:
            self.sources.clear()
        with self._file.changing_space():
            self._file.ensure_record(self._key)

    def take_last(self) -> None:
        """Take what is in PID/<pid>, before we close, and wake up every source that may be waiting for room."""
        if self._tdb.get(self._key):
            self._take_value(self._key, self._chain, None)
            self._sort()
        for source in self.sources.values():
            self._destinations.wake_up(source.server_id)

    def _take_value(
        self, key: bytes, chain: ChainLock, source: Source | None, is_wanted: Callable[[bytes], bool] = bool
    ) -> None:
        """Read a record and empty it in one step, if its value is wanted."""
        database, words = self._tdb, self._words
        words[TAKING] = 1
        taken, is_too_large = None, False
        try:
            chain.lock()
            try:
                value = database.get(key)
            except MemoryError:
                value = None
            if value is None:
                is_too_large = key in database
            elif is_wanted(value):
                self._taken = taken = Taken(value, source)
                taken.emptied.extend(map(database.store, (key,), (b"",)))
        except BaseException:
            if taken is not None and not database.get(key):
                taken.emptied.append(True)
            raise
        finally:
            words[TAKING] = 0
            chain.release()
        if is_too_large:
            self._take_parts(key, source, is_wanted)

    def _get(self, key: bytes) -> bytes | None:
        """The value of a record, empty if there is none; None if there is no memory for it."""
        try:
            value = self._tdb.get(key)
        except MemoryError:
            return None
        return b"" if value is None and key not in self._tdb else value

    def _take_parts(self, key: bytes, source: Source | None, is_wanted: Callable[[bytes], bool]) -> None:
        """Do what _take_value() does with a value for which there is no memory (rule 7)."""
        fd, taken = self._file.fd, None
        try:
            self._tdb.lock_all()
            found = find_value(partial(os.pread, fd), os.fstat(fd).st_size, key)
            if found is None:
                return
            place, size = found

            def read(length: int, at: int) -> bytes:
                return os.pread(fd, max(min(length, size - at), 0), place + at)

            if is_wanted(read(SEGMENT_START_SIZE, 0)):
                self._taken = taken = Taken(b"", source, self._decoder.decode_parts(read, size))
                taken.emptied.extend(map(self._tdb.store, (key,), (b"",)))
        except BaseException:
            if taken is not None and self._get(key) == b"":
                taken.emptied.append(True)
            raise
        finally:
            self._tdb.unlock_all()

    def _take_segment(self, source: Source) -> None:
        """Take what is in the source's segment; stop following the source if it is dead and its segment is empty."""
        self._take_value(source.key, self._file.chains.of(source.key), source, source.owns)
        if self._taken:
            is_there = self._sort()
            following = self.sources.get((source.server_id.pid, source.server_id.unique_id))
            if following is not None and following is not source:
                if not self.messages:
                    self._take_segment(following)
            elif not is_there:
                self._forget(source)
        elif time.monotonic() - source.seen_alive > CHECK_INTERVAL:
            source.seen_alive = time.monotonic()
            with contextlib.suppress(TransportError):  # no descriptor is left for the check
                if not self._presence.is_alive(source.server_id):
                    self._forget(source)

    def _forget(self, source: Source) -> None:
        """Stop following a source that has ended, and delete its slots, unless there is something in its segment."""
        if self._has_segment(source):
            return
        with self._file.changing_space():
            for key in source.slots:
                if not self._tdb.get(key):
                    self._file.delete(key)
        self.sources.pop((source.server_id.pid, source.server_id.unique_id), None)

    def _has_segment(self, source: Source) -> bool:
        """Whether there is something in the source's segment; once there is, it stays until we take it."""
        value = self._get(source.key)
        return value is None or source.owns(value)

    # Sorting

    def _sort(self) -> bool:
        """Decode what has been taken: messages are for delivery, "continued" records say which sources to follow.

        If an exception ends it, the next call does the rest; to follow a source or to wake it up twice does no harm.
        Returns False if what was taken is from the segment of a source that has ended.
        """
        taken, is_there = self._taken, True
        if taken is not None and taken.emptied:
            if taken.messages is None:
                taken.messages = self._decode(taken)
            last = taken.messages[-1] if taken.messages else None
            move_all(taken.messages, self.messages.append)
            if taken.source is not None:
                is_there = self._destinations.wake_up(taken.source.server_id)
            elif last is not None:
                self._grants.give(last.src)
        self._taken = None
        return is_there

    def _decode(self, taken: Taken) -> deque[Message]:
        if len(taken.value) > LONG:
            keep_memory()
        messages, specials = taken.decoded or self._decoder.decode(taken.value)
        from_record = taken.source is None
        if from_record and self.sources:
            self._end_following(messages)
        for position, what in specials:
            if isinstance(what, Continuation) and _is_of_source(what, taken.source):
                self._follow(what)
                if from_record:
                    self._destinations.wake_up(ServerID(what.pid, unique_id=what.unique_id))
                    self._end_following(messages[position:])
            elif isinstance(what, SegmentStart) and not position and taken.source is not None:
                taken.source.is_begun = True
            elif isinstance(what, LostMessage):
                self._drops("no memory left", str(what))
            else:
                self._drops("malformed", f"in messages.tdb: {what}")
        if from_record and len(taken.value) > CROWDED:
            self._destinations.wake_up_everybody()
        return deque(messages)

    def _follow(self, what: Continuation) -> None:
        server_id = ServerID(what.pid, unique_id=what.unique_id)
        key = segment_key(self._presence.pid, what.pid, what.unique_id, what.slot)
        before = self.sources.get((what.pid, what.unique_id))
        slots = set() if before is None else before.slots
        self.sources[what.pid, what.unique_id] = Source(server_id, key, what.number, slots)

    def _end_following(self, messages: list[Message]) -> None:
        """Stop following the sources of these messages: they have come through PID/<pid> (rule 3)."""
        for message in messages:
            self.sources.pop((message.src.pid, message.src.unique_id), None)


def _is_of_source(what: Continuation, source: Source | None) -> bool:
    """Whether a "continued" record is where it may be: in PID/<pid>, or in a segment of the same source."""
    return source is None or (what.pid, what.unique_id) == (source.server_id.pid, source.server_id.unique_id)
