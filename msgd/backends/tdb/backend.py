"""Records in messages.tdb, and SIGUSR1 to a receiver that sleeps.

The file, and what a kill or a full disk does to it, is in messages_tdb.py; in which of its records a message goes, and
how deep queues are bounded, in tdb_destination.py; the formats are in wire/tdb_record.py.

Taking.  get and store("") are made one step by the lock of the record's chain (chain_lock.py); it is taken only when
there is something, once for all that is there.  A mutex that is held costs whoever wants it a sleep and a wake-up, ten
times what is done under it: so the receiver says in a word of its shared memory that it is taking, and a sender that
sees it turns for a moment first.  That is a hint; the lock decides.

Waking.  A receiver that is about to sleep writes a new epoch number into a word of shared memory (in its lock file)
and then looks into its record; it sleeps only if that is empty.  A sender appends, and then reads the word.  Both touch
the record under its lock in tdb: if the receiver's look came first, its epoch was written before it released that lock,
so the sender reads it and signals; if the append came first, the receiver's look finds the message.  Either way the
message does not lie there with the receiver asleep.  The same holds for a segment.  A sender signals once per epoch:
the receiver that was woken for it looks at everything before the next.  The word is the receiver's alone to write and
each sender signals for itself, so one that is killed before it signals misleads nobody.

Signalling.  A pid that is reused has another pidfd and another lock file than the process that was found to be the
peer.  The lock is looked at again before each signal: a process that executes another program keeps its pid and loses
its lock.  A receiver says CLOSED in its word before it lets go of its lock.

The dead.  What was queued for them goes at clean-up, under their lock file's lock, and when a process with the same pid
starts, before its words are shared and anybody can send to it.  A record torn by a kill is skipped and counted.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from msgd.backends.base import Backend, BackendStatistics, Deliver
from msgd.backends.sockets import cached_destinations, check_unique_id
from msgd.backends.spin import Looks
from msgd.backends.tdb.chain_lock import ChainLock
from msgd.backends.tdb.destination import (
    AWAKE,
    CLOSED,
    CROWDED,
    DESCRIPTORS,
    EPOCH,
    GRANTS,
    TAKING,
    Bounds,
    Destination,
    open_destination,
)
from msgd.backends.tdb.doorbell import Doorbell
from msgd.backends.tdb.libtdb import missing_record, tdb_errors
from msgd.backends.tdb.messages_file import MessagesFile, read_messages_file
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import MessageTooLarge, NoSuchProcess, QueueFull, TransportError
from msgd.linux import wait_readable
from msgd.presence import Presence, RendezvousDirectory
from msgd.results import SendStatus
from msgd.wire.header import Message
from msgd.wire.server_id import ANY_PROCESS, ServerID
from msgd.wire.tdb_record import (
    RECORD_TYPE_MAX,
    Continuation,
    RecordDecoder,
    SegmentStart,
    count_messages,
    key_pid,
    key_source_pid,
    pack_message,
    queue_key,
    segment_key,
    segment_number,
)

_SENT = SendStatus.SENT

_LOOKS_CROWDED = 128
"""Looks at most where others want to run: a signal costs both sides more than a score of messages."""

_TAKES_A_ROUND = 16
"""receive() returns after this many, so that a flood does not keep dispatch from its other work."""

_SLOTS_MAX = 100
"""Slots of each source that a repair looks for."""

_SOURCE_CHECK = 1.0
"""Seconds between two looks whether the source of an unfinished continuation, or that of a grant, still lives."""


class _Source:
    """A source whose messages go on in segments: where to read next, and when it was last seen alive.

    `begun`: whether that segment's start has been taken.
    """

    __slots__ = ("begun", "key", "number", "seen_alive")

    def __init__(self, key: bytes, number: int) -> None:
        self.key = key
        self.number = number
        self.begun = False
        self.seen_alive = time.monotonic()

    def owns(self, value: bytes) -> bool:
        """Whether what is in the slot is of the segment that is to be read."""
        number = segment_number(value)
        return self.begun and bool(value) if number is None else number == self.number


class _Grant(NamedTuple):
    """Which word grants it to which source; see tdb_destination.py."""

    word: int
    source: ServerID


class TdbBackend(Backend):
    """The endpoint of this process in messages.tdb."""

    carries_fds = False

    def __init__(self, config: Config, presence: Presence, drops: Drops) -> None:
        super().__init__(config, presence, drops)
        self._key = queue_key(presence.pid)
        self._decoder = RecordDecoder(presence.pid, self._source_id)
        self._inbox: deque[Message] = deque()
        self._in_hand = b""
        """What has been taken from the file and is not in the inbox yet."""
        self._in_hand_from: tuple[int, int] | None = None
        """The source of whose segments it is; None if it is from PID/<pid>."""
        self._sources: dict[tuple[int, int], _Source] = {}
        self._grants: dict[int, _Grant] = {}
        """By the unique ids of the sources that have them."""
        self._grants_looked_at = 0.0
        self._destinations: dict[int, Destination] = {}
        self._full: dict[int, Destination] = {}
        self._bounds = Bounds.of(config)
        self._epoch = AWAKE
        self._watched = False
        self._closed = False
        self._cached_destinations = cached_destinations(DESCRIPTORS)
        self._doorbell = Doorbell()
        try:
            self._file = MessagesFile(config, presence, self._known_keys)
        except BaseException:
            self._doorbell.close()
            raise
        try:
            self._file.repairing(self._take_place)
            self._words = presence.share_words(AWAKE)
        except BaseException as error:
            self._file.close()
            self._doorbell.close()
            if isinstance(error, OSError):
                raise TransportError(f"the lock file of pid {presence.pid}: {error.strerror}") from error
            raise
        self._tdb = self._file.tdb
        self._append = self._tdb.append
        self._chain = self._file.chains.of(self._key)
        self._looks = Looks(_LOOKS_CROWDED)

    def _take_place(self) -> None:
        """Make our record, in place of what a process with our pid has left behind."""
        self._remove(self.presence.pid)
        with self._file.changing_space():
            self._file.make_record(self._key)

    def fileno(self) -> int:
        if not self._watched:
            self._watched = True
            self._fall_asleep()
        return self._doorbell.fileno()

    # Sending

    def send(
        self,
        dst: ServerID,
        src: ServerID,
        message_type: int,
        data: bytes,
        fds: Collection[int] = (),
        duplicates_allowed: bool = True,
    ) -> SendStatus:
        pid, _, _, unique_id = dst
        peer = self._destinations.get(pid)
        if peer is None or (unique_id != peer.unique_id and unique_id not in ANY_PROCESS) or not peer.lives():
            peer = self._find(dst)
        if fds or message_type > RECORD_TYPE_MAX:
            raise _cannot_carry(message_type)
        record = pack_message(dst, src, message_type, data)
        try:
            if not duplicates_allowed and peer.is_pending(record):
                return SendStatus.MERGED
            if peer.words[TAKING]:
                peer.let_it_take()
            unlooked_bytes = peer.unlooked_bytes + len(record)
            if unlooked_bytes <= peer.quota:
                peer.unlooked += 1
                peer.unlooked_bytes = unlooked_bytes
                self._append(peer.open_key, record)
            else:
                peer.append_with_care(record)
        except RuntimeError as error:
            self._file.repair(error)
            with tdb_errors():
                peer.append_with_care(record)
        except QueueFull:
            self._full[pid] = peer
            raise
        finally:  # if a signal's handler raises, too: the message may be there
            if peer.words[EPOCH] != peer.rung_epoch:
                peer.ring_if_asleep()
        return _SENT

    def pending(self, pid: int) -> int:
        def values() -> list[bytes]:
            with self._file.all_keys() as keys:
                return [self._tdb.get(key) or b"" for key in keys if key_pid(key) == pid]

        return sum(map(count_messages, self._file.repairing(values)))

    def flush(self, timeout: float = 0.0) -> None:
        """Nothing waits in this process; a `timeout` waits until a receiver at its bound has taken something."""
        if not timeout or not self._full:
            return
        self._doorbell.drain()
        previous = self._doorbell.begin_listening()
        try:
            self._announce_sleep()
            if not self._some_have_room():
                poll = select.poll()
                for fd in (self._doorbell.fileno(), *(peer.pidfd for peer in self._full.values())):
                    poll.register(fd, select.POLLIN)
                poll.poll(timeout * 1000)
                self._some_have_room()
        finally:
            self._doorbell.end_listening(previous)
            self._doorbell.drain()
            self._words[EPOCH] = AWAKE
            if self._watched:
                self._fall_asleep()

    def _some_have_room(self) -> bool:
        """Strike out the full destinations that have taken something or have ended; whether there were any."""
        with tdb_errors():
            relieved = [peer for peer in self._full.values() if not peer.lives() or peer.forget_taken()]
        for peer in relieved:
            del self._full[peer.pid]
        return bool(relieved)

    def _find(self, dst: ServerID) -> Destination:
        """The destination for `dst`, as it is now; NoSuchProcess if that process is not here or closed."""
        peer = self._destinations.get(dst.pid)
        if peer is not None and not peer.lives():
            self._forget(peer)
            peer = None
        if peer is None:
            peer = open_destination(dst, self.presence, self._words, self._file, self._bounds)
            if len(self._destinations) >= self._cached_destinations:
                known = self._destinations.values()
                idle = next((one for one in known if not one.continuation or not one.lives()), None)
                if idle is not None:
                    self._forget(idle)
            self._destinations[dst.pid] = peer
        check_unique_id(dst, peer.unique_id)
        return peer

    def _forget(self, peer: Destination) -> None:
        del self._destinations[peer.pid]
        self._full.pop(peer.pid, None)
        peer.close()

    # Receiving

    def receive(self, deliver: Deliver) -> None:
        self._words[EPOCH] = AWAKE
        if self._watched or self._doorbell.rung:
            self._doorbell.drain()
        inbox = self._inbox
        try:
            for _ in range(_TAKES_A_ROUND):
                if not inbox and not self._take():
                    return
                while inbox:
                    deliver(inbox.popleft())
                    if self._closed:
                        return
        except RuntimeError as error:
            self._file.repair(error)
        finally:
            if self._watched and not self._closed:
                self._fall_asleep()

    def _take(self) -> bool:
        """Move what is in the file to the inbox; whether there is something."""
        if self._in_hand:
            self._sort()
        value = self._tdb.get(self._key)
        if value:
            self._take_value(self._key, self._chain, None)
            self._sort()
        elif value is None:
            raise missing_record()
        for source_key, source in list(self._sources.items()):
            self._take_segment(source_key, source)
        return bool(self._inbox)

    def _take_value(
        self,
        key: bytes,
        chain: ChainLock,
        source_key: tuple[int, int] | None,
        is_wanted: Callable[[bytes], bool] = bool,
    ) -> None:
        """Empty a record, in one step with reading it, and have what was in it in hand, if that is wanted.

        A signal's handler that raises, wherever it is called here, neither leaves the lock held nor loses a message.
        """
        database, words = self._tdb, self._words
        words[TAKING] = 1
        try:
            chain.lock()
            self._in_hand_from = source_key
            value = database.get(key) or b""
            if is_wanted(value):
                self._in_hand = value
                database.store(key, b"")
        except BaseException:
            if database.get(key):
                self._in_hand = b""
            raise
        finally:
            words[TAKING] = 0
            chain.release()

    def _sort(self) -> None:
        """What is in hand: messages into the inbox, continuations to where they are followed."""
        messages, specials = self._decoder.decode(self._in_hand)
        from_record = self._in_hand_from is None
        if from_record and self._sources:
            self._end_continuations(messages)
        for position, what in specials:
            if isinstance(what, Continuation) and self._in_hand_from in (None, (what.pid, what.unique_id)):
                key = segment_key(self.presence.pid, what.pid, what.unique_id, what.slot)
                self._sources[what.pid, what.unique_id] = _Source(key, what.number)
                if from_record:
                    self._end_continuations(messages[position:])
                    self._tell_of_room(ServerID(what.pid, unique_id=what.unique_id))
            elif isinstance(what, SegmentStart) and not position and self._in_hand_from in self._sources:
                self._sources[self._in_hand_from].begun = True
            else:
                self.drops("malformed", f"in messages.tdb: {what}")
        if from_record and len(self._in_hand) > CROWDED:
            self._tell_all_of_room()
        self._in_hand = b""
        self._inbox.extend(messages)
        if from_record and messages and messages[-1].src.unique_id not in self._grants:
            self._grant(messages[-1].src)

    def _grant(self, source: ServerID) -> None:
        """Let a source append to our record without a look at its depth each time, if there is a grant for it."""
        if source.unique_id in ANY_PROCESS:
            return
        if len(self._grants) == len(GRANTS) and time.monotonic() - self._grants_looked_at > _SOURCE_CHECK:
            self._grants_looked_at = time.monotonic()
            with contextlib.suppress(TransportError):  # no descriptors left to look with
                dead = next((one for one in self._grants.values() if not self.presence.is_alive(one.source)), None)
                if dead is not None:
                    del self._grants[dead.source.unique_id]
        if len(self._grants) < len(GRANTS):
            word = min(set(GRANTS) - {one.word for one in self._grants.values()})
            self._grants[source.unique_id] = _Grant(word, source)
            self._words[word] = source.unique_id

    def _end_continuations(self, messages: list[Message]) -> None:
        """A source that appends to our record (again) has nothing left in segments."""
        for message in messages:
            self._sources.pop((message.src.pid, message.src.unique_id), None)

    def _take_segment(self, source_key: tuple[int, int], source: _Source) -> None:
        """Take what is in the source's segment; forget the source if nothing is and it is dead."""
        self._take_value(source.key, self._file.chains.of(source.key), source_key, source.owns)
        if self._in_hand:
            self._sort()
            self._tell_of_room(ServerID(source_key[0], unique_id=source_key[1]))
            following = self._sources.get(source_key)
            if not self._inbox and following is not None and following is not source:
                self._take_segment(source_key, following)
        elif time.monotonic() - source.seen_alive > _SOURCE_CHECK:
            source.seen_alive = time.monotonic()
            with contextlib.suppress(TransportError):  # no descriptors left to look with
                is_alive = self.presence.is_alive(ServerID(source_key[0], unique_id=source_key[1]))
                if not is_alive and not self._has_segment(source):
                    del self._sources[source_key]

    def _has_segment(self, source: _Source) -> bool:
        """Whether there is something in the segment to be read; only we take it away again."""
        return source.owns(self._tdb.get(source.key) or b"")

    def _tell_of_room(self, source: ServerID) -> None:
        """Wake a source that may be waiting at its bound."""
        with contextlib.suppress(NoSuchProcess, TransportError):
            peer = self._destinations.get(source.pid)
            if peer is None or peer.unique_id != source.unique_id:
                peer = self._find(source)
            peer.ring_if_asleep()

    def _tell_all_of_room(self) -> None:
        """Wake everybody: among them are those who could not even say in our record that they go on elsewhere."""
        with contextlib.suppress(TransportError, OSError):  # no descriptors left to look with
            for process in self.presence.processes():
                self._tell_of_room(ServerID(process.pid, unique_id=process.unique_id))

    def _source_id(self, pid: int) -> ServerID:
        """Who has `pid` now, as the source of a record that names the pid alone."""
        peer = self._destinations.get(pid)
        if peer is None or not peer.lives():
            try:
                peer = self._find(ServerID(pid))
            except (NoSuchProcess, TransportError):
                return ServerID(pid)
        return peer.server_id

    def _has_messages(self) -> bool:
        try:
            if self._inbox or self._in_hand or self._tdb.get(self._key):
                return True
            return any(map(self._has_segment, self._sources.values()))
        except RuntimeError as error:
            self._file.repair(error)
            return True

    def _announce_sleep(self) -> None:
        """From here on senders signal."""
        self._epoch += 1
        self._words[EPOCH] = self._epoch

    def _fall_asleep(self) -> None:
        """Announce it, and look once more: fileno() is readable if there is something."""
        self._doorbell.arm()
        self._announce_sleep()
        if self._has_messages():
            self._doorbell.ring()

    def wait(self, timeout: float | None, watched: int = -1) -> bool:
        if self._looks(self._has_messages):
            return False
        previous = self._doorbell.begin_listening()
        try:
            self._announce_sleep()
            if self._has_messages():
                return False
            ended = wait_readable(self._doorbell.fileno(), timeout, watched)
        finally:
            self._doorbell.end_listening(previous)
        self._doorbell.rung = True  # the handler may not have run yet, if this is not the main thread
        return ended

    def _known_keys(self) -> set[bytes]:
        """The records that we know of."""
        keys = {queue_key(pid) for pid in (self.presence.pid, *(one.pid for one in self.presence.processes()))}
        for peer in self._destinations.values():
            keys.update(segment.key for segment in (*peer.segments, *peer.spare))
        for pid, unique_id in self._sources:
            keys.update(segment_key(self.presence.pid, pid, unique_id, slot) for slot in range(_SLOTS_MAX))
        return keys

    # The end

    @classmethod
    def depths(cls, config: Config, directory: RendezvousDirectory) -> Mapping[int, int]:
        depths: Counter[int] = Counter()
        for key, value in read_messages_file(config, directory).items():
            pid = key_pid(key)
            if pid is not None:
                depths[pid] += count_messages(value)
        return depths

    def left_behind(self) -> Collection[int]:
        """The pids that have records, but for living processes without a lock file: Samba 3.0's have none.

        Slots have two: their receiver's, and, if they are empty, their source's.
        """
        pids = self._file.repairing(self._pids_of_records)
        return {pid for pid in pids if not os.path.exists(f"/proc/{pid}")}

    def _pids_of_records(self) -> set[int]:
        with self._file.all_keys() as keys:
            receivers = {key_pid(key) for key in keys}
            sources = {key_source_pid(key) for key in keys if not self._tdb.get(key)}
        return {pid for pid in receivers | sources if pid is not None}

    def remove(self, pid: int) -> None:
        self._file.repairing(lambda: self._remove(pid))

    def _remove(self, pid: int) -> None:
        database = self._file.tdb
        with self._file.all_keys() as keys:
            those = [
                key for key in keys if key_pid(key) == pid or (key_source_pid(key) == pid and not database.get(key))
            ]
            if those:
                with self._file.changing_space():
                    for key in those:
                        self._file.delete(key)

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(0, 0, 0)

    def give_up(self) -> int:
        return 0

    def close(self) -> None:
        if self._closed:
            return
        self._words[EPOCH] = CLOSED
        try:
            if self._tdb.get(self._key):
                self._take_value(self._key, self._chain, None)
                self._sort()  # its sources may be waiting for room
            for pid, unique_id in self._sources:
                self._tell_of_room(ServerID(pid, unique_id=unique_id))
            self.remove(self.presence.pid)
        finally:
            self.abandon()

    def abandon(self) -> None:
        self._closed = True
        self._doorbell.close()
        self._file.close()
        for peer in self._destinations.values():
            peer.close()
        self._destinations.clear()
        self._full.clear()
        self._words.release()


def _cannot_carry(message_type: int) -> MessageTooLarge:
    if message_type > RECORD_TYPE_MAX:
        return MessageTooLarge(f"message type {message_type:#x} does not fit a record's 31 bits; use dgram or stream")
    return MessageTooLarge("messaging type tdb carries no file descriptors; use dgram or stream")
