"""Records in messages.tdb, and SIGUSR1 to a receiver that sleeps.

Layout.  A process takes its messages from the record PID/<pid>; senders append to it (wire/tdb_record.py has the
formats).  tdb_append copies the value it appends to, so a sender that finds the record deep does not make it deeper:
it appends a "continued" record and puts its further messages into segments of its own, of bounded size, each of which
ends in a "continued" record when it is full.  The receiver follows.  Once it has taken everything (the last segment is
empty) the source appends to PID/<pid> again.  So all messages of a pair stay in order, each is in the file once, and
every step costs the same at any depth.

Slots.  The records that segments are in are emptied, not deleted, and used again: see Dying.  A segment has a number
that no other of its source has, and begins with it; the receiver takes a segment only with the number it was led to, so
it never takes what a source has put into an old slot after messages that are still in PID/<pid>.

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

Not sleeping.  A signal costs both sides more than a score of messages, so a receiver that has nothing to do goes on
looking for some microseconds first.  How long follows from how that went: while it is in vain, it hardly looks.

Signalling.  The pidfd is opened before the lock file is found locked by that pid, with the unique id of the address;
a pid that is reused later has another pidfd and another lock file.  The lock is looked at again before each signal: a
process that executes another program keeps its pid and loses its lock.  A receiver says CLOSED in its word before it
lets go of its lock.

Dying.  Mutexes are robust: the next locker of a dead process's lock gets it.  tdb_append moves a record that has
outgrown its place by deleting it first, so a kill in that moment, or a full disk, takes what others have written with
it.  So the receiver makes its record with room for a deep queue and empties it in place, and a sender makes its
slots with their full size: an append only writes behind what is there, then the new length.  A record torn
nevertheless is skipped and counted.  libtdb's list of free space is not safe from a kill in the middle of a change:
when it joins two free records, a kill leaves the space of one in the list twice, and later two records in one place.
So nothing is given back while messages flow, but slots above a mebibyte for each pair; clean-up gives back, and the
slots of long messages.  (max_dead, which keeps deleted records off the list, made it worse: a hundred kills were enough
to mix up two chains.)  Who finds the list damaged makes the file anew under the lock over all, with every record that
can be read.  What was queued for the dead goes at clean-up, under their lock file's lock, and when a process with the
same pid starts, before its words are shared and anybody can send to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import mmap
import os
import select
import signal
import stat
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

import tdb

from msgd.backends.base import (
    Backend,
    BackendStatistics,
    Deliver,
    SendStatus,
    cached_destinations,
    check_unique_id,
    wait_readable,
)
from msgd.backends.chain_lock import ChainLock, ChainLocks
from msgd.backends.doorbell import Doorbell
from msgd.backends.drops import Drops
from msgd.config import Config
from msgd.errors import (
    BackendUnavailable,
    MessageTooLarge,
    NoSuchProcess,
    QueueFull,
    TransportError,
    UnsafeDirectory,
)
from msgd.presence import Presence, Process, RendezvousDirectory
from msgd.presence.processes import lock_holder, map_words, shared_words
from msgd.wire.header import Message
from msgd.wire.server_id import ANY_PROCESS, ServerID
from msgd.wire.tdb_record import (
    CONTINUATION_SIZE,
    RECORD,
    SEGMENT_START_SIZE,
    TYPE_MAX,
    Continuation,
    RecordDecoder,
    SegmentStart,
    count_messages,
    holds,
    key_pid,
    key_source_pid,
    pack_continuation,
    pack_message,
    pack_segment_start,
    queue_key,
    segment_key,
    segment_number,
)

T = TypeVar("T")

logger = logging.getLogger("msgd")

FILE_NAME = "messages.tdb"
_MAGIC = b"TDB file\n"
_MUTEX_LOCKING = 4096
"""TDB_MUTEX_LOCKING; the Python module has no name for it."""
_MUTEX_CHAINS = 89
"""Hash chains of a file with mutexes: as many as have their mutexes in the file's first page.

That page is written when the file is made; the next would be a hole, and a full disk a SIGBUS.  Another number than
that of a file without mutexes (131), by which the two are told apart.
"""

_SENT = SendStatus.SENT

_CORRUPT, _LOCK_FAILED, _NO_RECORD = 1, 3, 8
"""TDB_ERR_CORRUPT, TDB_ERR_LOCK and TDB_ERR_NOEXIST, the first argument of the module's RuntimeError."""

_EPOCH = 0
"""The word that says since when a receiver has been asleep, or one of these two."""
_AWAKE = 0
_CLOSED = 0xFFFFFFFFFFFFFFFF

_TAKING = 1
"""The word that is not 0 while a receiver empties a record."""
_TURNS = 200
"""How often a sender looks at that word at most, some ten microseconds: then the receiver has been interrupted."""

_LOOKS_MIN, _LOOKS_MAX = 16, 128
"""How often a receiver looks for a message before it goes to sleep; a look takes a third of a microsecond."""

_PLACE = 32768
"""Bytes for which PID/<pid> and the slots have room, so that the place of one fits the next.

A slot that is made for a longer message has more.
"""
_DEEP = 8192
"""Bytes in PID/<pid> from which on a sender continues elsewhere."""
_LOOK_AFTER = 256
_LOOK_AFTER_BYTES = 1024
"""Messages and bytes that a sender appends between two looks at that depth: a score of senders may not have looked."""
_LOOK_AT_SEGMENT_AFTER = 16
"""Messages that a sender appends to a segment between two looks whether everything has been taken."""
_SPARE_BYTES = 1 << 20
"""Bytes of empty slots that are kept for each destination."""

_TAKES_A_ROUND = 16
"""receive() returns after this many, so that a flood does not keep dispatch from its other work."""

_DESCRIPTORS_A_PEER = 3
"""Its pidfd, its lock file, and the descriptor that Python's mmap keeps."""
_TRUST_ALIVE = 20e-6
"""Seconds for which a process seen alive counts as alive: less than anybody needs to see it die and tell."""
_SOURCE_CHECK = 1.0
"""Seconds between two looks whether the source of an unfinished continuation still lives."""


class _Peer:
    """A process as a destination: proof that it is there, its words, and where our messages to it go."""

    def __init__(
        self,
        process: Process,
        pidfd: int,
        words: memoryview,
        memory: mmap.mmap | None = None,
        lock_fd: int = -1,
    ) -> None:
        self.pid = process.pid
        self.unique_id = process.unique_id
        self.server_id = ServerID(process.pid, unique_id=process.unique_id)
        self.key = queue_key(process.pid)
        self.pidfd = pidfd
        self.words = words
        self.rung_epoch = _AWAKE
        """The epoch this sender has signalled for."""
        self.unlooked = 0
        self.unlooked_bytes = _LOOK_AFTER_BYTES
        """What we appended to PID/<pid> since we last looked at its depth; so much that we look at first."""
        self.met = True
        """Whether that has not been done."""
        self.appended = self.appended_bytes = 0
        """Upper bounds of what was ours in PID/<pid> at that look."""
        self.continuation = b""
        """The last "continued" record, if our messages go on in segments; empty if they go to PID/<pid>."""
        self.announced: _Segment | None = None
        """The segment which that record names, while it has not been begun."""
        self.segments: deque[_Segment] = deque()
        """Those not known to be taken; the last one is the open one."""
        self.unlooked_in_segment = 0
        """Messages that we appended to it since we last looked whether it is empty."""
        self.spare: list[_Segment] = []
        """Empty slots."""
        self.slots = 0
        """Number of slots that have been made."""
        self.segments_messages = self.segments_bytes = 0
        self._memory = memory
        self._lock_fd = lock_fd
        self._seen_alive = 0.0

    def lives(self) -> bool:
        """Whether the process is there and has not closed its endpoint."""
        if self.words[_EPOCH] == _CLOSED:
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
        epoch = self.words[_EPOCH]
        if epoch not in (_AWAKE, _CLOSED, self.rung_epoch):
            self.rung_epoch = epoch
            with contextlib.suppress(ProcessLookupError):
                if self._holds_lock():
                    signal.pidfd_send_signal(self.pidfd, signal.SIGUSR1)

    def let_it_take(self) -> None:
        """Turn until the receiver has emptied the record that it is at."""
        words = self.words
        for _ in range(_TURNS):
            if not words[_TAKING]:
                return

    def waiting(self) -> tuple[int, int]:
        """Upper bounds of our messages, and their bytes, that it has not taken."""
        return (
            self.appended + self.unlooked + self.segments_messages,
            self.appended_bytes + self.unlooked_bytes + self.segments_bytes,
        )

    def strike_out(self, segment: _Segment) -> None:
        """The segment has been taken, as far as we had written it."""
        self.segments_messages -= segment.messages
        self.segments_bytes -= segment.bytes
        segment.messages = segment.bytes = 0

    def come_back(self) -> None:
        """Everything has been taken: go on in PID/<pid>."""
        for segment in self.segments:
            self.strike_out(segment)
        self.spare += self.segments
        self.segments.clear()
        if self.announced is not None:
            self.spare.append(self.announced)
            self.announced = None
        self.continuation = b""
        self.look(0)

    def spare_for(self, size: int) -> _Segment | None:
        """The smallest of the empty slots with room for `size` bytes, which is not spare any more."""
        fitting = [slot for slot in self.spare if slot.room >= size]
        if not fitting:
            return None
        smallest = min(fitting, key=lambda slot: slot.room)
        self.spare.remove(smallest)
        return smallest

    def look(self, depth: int) -> None:
        """Take in that PID/<pid> has `depth` bytes now."""
        if self.met:
            self.met, self.unlooked_bytes = False, 0
        self.appended = min(self.appended + self.unlooked, depth // RECORD.size)
        self.appended_bytes = min(self.appended_bytes + self.unlooked_bytes, depth)
        self.unlooked = self.unlooked_bytes = 0

    def close(self) -> None:
        """Let go of the process."""
        os.close(self.pidfd)
        if self._memory is not None:
            self.words.release()
            self._memory.close()
            os.close(self._lock_fd)


class _Segment:
    """One of our slots, and what is in it of a segment in which messages to a peer go on.

    `room`: bytes that fit into the slot; `used`: those written since the segment was begun, taken or not; `messages`,
    `bytes`: what is not known to be taken.
    """

    __slots__ = ("bytes", "key", "messages", "number", "room", "slot", "used")

    def __init__(self, slot: int, key: bytes, room: int) -> None:
        self.slot = slot
        self.key = key
        self.room = room
        self.number = self.used = self.messages = self.bytes = 0


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
        self._peers: dict[int, _Peer] = {}
        self._full: dict[int, _Peer] = {}
        self._segment_numbers = itertools.count(1)
        self._deep = min(_DEEP, config.send_queue_bytes // 2)
        self._plain_max = config.send_queue_messages // 2
        self._look_after = min(_LOOK_AFTER, self._plain_max)
        self._look_after_bytes = min(_LOOK_AFTER_BYTES, config.send_queue_bytes // 4)
        self._epoch = _AWAKE
        self._watched = False
        self._closed = False
        self._cached_peers = cached_destinations(_DESCRIPTORS_A_PEER)
        self._doorbell = Doorbell()
        try:
            self._tdb = _open_tdb(config, presence)
        except BaseException:
            self._doorbell.close()
            raise
        try:
            self._repairing(self._take_place)
            self._words = presence.share_words(_AWAKE)
        except BaseException as error:
            self._tdb.close()
            self._doorbell.close()
            if isinstance(error, OSError):
                raise TransportError(f"the lock file of pid {presence.pid}: {error.strerror}") from error
            raise
        self._append = self._tdb.append
        self._chains = ChainLocks(self._tdb)
        self._chain = self._chains.of(self._key)
        self._looks = _LOOKS_MIN
        """How often we look for a message before the next sleep."""

    def _take_place(self) -> None:
        """Make our record, with all of its room, in place of what a process with our pid has left behind."""
        self._remove(self.presence.pid)
        with self._all_locked():
            self._tdb.store(self._key, bytes(_PLACE))
            self._tdb.store(self._key, b"")

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
        peer = self._peers.get(pid)
        if peer is None or (unique_id != peer.unique_id and unique_id not in ANY_PROCESS) or not peer.lives():
            peer = self._find(dst)
        if fds or message_type > TYPE_MAX:
            raise _cannot_carry(message_type)
        record = pack_message(dst, src, message_type, data)
        try:
            if not duplicates_allowed and self._is_pending(peer, record):
                return SendStatus.MERGED
            if peer.words[_TAKING]:
                peer.let_it_take()
            unlooked_bytes = peer.unlooked_bytes + len(record)
            if peer.unlooked < self._look_after and unlooked_bytes <= self._look_after_bytes and not peer.continuation:
                self._append(peer.key, record)
                peer.unlooked += 1
                peer.unlooked_bytes = unlooked_bytes
            else:
                self._append_at_depth(peer, record)
        except RuntimeError as error:
            if not self._repaired(error):
                raise _transport_error(error) from error
            with _tdb_errors():
                self._append_at_depth(peer, record)
        finally:  # if a signal's handler raises, too: the message may be there
            if peer.words[_EPOCH] != peer.rung_epoch:
                peer.ring_if_asleep()
        return _SENT

    def _append_at_depth(self, peer: _Peer, record: bytes) -> None:
        """Append to PID/<pid> while that is not deep, else to a segment."""
        size, segment = len(record), peer.segments[-1] if peer.segments else None
        is_full = segment is not None and segment.used + size + CONTINUATION_SIZE > segment.room
        if segment is not None and (is_full or peer.unlooked_in_segment >= _LOOK_AT_SEGMENT_AFTER):
            peer.unlooked_in_segment = 0
            if not self._tdb.get(segment.key):
                peer.come_back()
                self._give_back(peer.spare)
        if not peer.continuation:
            depth = len(self._tdb.get(peer.key) or b"")
            peer.look(depth)
            if depth + size <= self._deep and peer.appended < self._plain_max:
                self._append(peer.key, record)
                peer.unlooked, peer.unlooked_bytes = 1, size
                return
            self._announce_segment(peer, peer.key, size)
        elif segment is not None and is_full and peer.announced is None:
            self._announce_segment(peer, segment.key, size)
        self._check_room(peer, size)
        if peer.announced is not None:
            segment = self._begin_segment(peer, peer.announced, record)
        else:
            segment = peer.segments[-1]
            self._append(segment.key, record)
            segment.used += size
        segment.messages += 1
        segment.bytes += size
        peer.segments_messages += 1
        peer.segments_bytes += size
        peer.unlooked_in_segment += 1

    def _announce_segment(self, peer: _Peer, key: bytes, size: int) -> None:
        """Say at the end of `key` in which segment our messages go on, one with room for a record of `size` bytes."""
        presence = self.presence
        room = SEGMENT_START_SIZE + size + CONTINUATION_SIZE
        room += -room % _PLACE
        if peer.segments:
            self._forget_taken(peer)
        segment = peer.spare_for(room)
        if segment is None:
            slot = peer.slots
            peer.slots += 1
            segment = _Segment(slot, segment_key(peer.pid, presence.pid, presence.unique_id, slot), room)
        segment.number = next(self._segment_numbers)
        record = pack_continuation(
            peer.pid, Continuation(presence.pid, presence.unique_id, segment.number, segment.slot)
        )
        try:
            self._append(key, record)
        except BaseException:
            peer.spare.append(segment)
            raise
        peer.continuation, peer.announced = record, segment
        self._give_back(peer.spare)

    def _begin_segment(self, peer: _Peer, segment: _Segment, record: bytes) -> _Segment:
        """Put the first record into a segment that has been announced."""
        value = pack_segment_start(peer.pid, self.presence.pid, segment.number) + record
        segment.room = max(segment.room, len(value) + CONTINUATION_SIZE)
        chain = self._chains.of(segment.key)
        try:
            _acquire(chain)
            if segment.key not in self._tdb:
                self._tdb.store(segment.key, bytes(segment.room))
            self._tdb.store(segment.key, value)
        finally:
            chain.release()
        segment.used = len(value)
        peer.announced = None
        peer.segments.append(segment)
        return segment

    def _give_back(self, spare: list[_Segment]) -> None:
        """Delete the largest of the empty slots, as far as they are more than are kept."""
        spare.sort(key=lambda slot: slot.room)
        excess = sum(slot.room for slot in spare) - _SPARE_BYTES
        while excess > 0:
            slot = spare.pop()
            excess -= slot.room
            self._delete(slot.key)

    def _delete(self, key: bytes) -> None:
        """Delete a record, if a clean-up was not faster."""
        try:
            self._tdb.delete(key)
        except RuntimeError as error:
            if error.args[:1] != (_NO_RECORD,):
                raise

    def _check_room(self, peer: _Peer, length: int) -> None:
        """Raise QueueFull if `length` bytes more are past the bound; into an empty queue any message goes."""
        if self._has_room(peer, length):
            return
        self._forget_taken(peer)
        if not self._has_room(peer, length):
            self._full[peer.pid] = peer
            messages, waiting_bytes = peer.waiting()
            raise QueueFull(
                f"pid {peer.pid} does not read: {messages} messages ({waiting_bytes} bytes) wait for it, the bound is"
                f" {self.config.send_queue_messages} messages and {self.config.send_queue_bytes} bytes"
            )

    def _has_room(self, peer: _Peer, length: int) -> bool:
        messages, waiting_bytes = peer.waiting()
        return not messages or (
            messages < self.config.send_queue_messages and waiting_bytes + length <= self.config.send_queue_bytes
        )

    def _forget_taken(self, peer: _Peer) -> bool:
        """Strike out what the continued peer has taken since, first what is in PID/<pid>; whether there was any."""
        if not peer.segments:
            taken = peer.continuation not in (self._tdb.get(peer.key) or b"")
        else:
            taken = False
            while len(peer.segments) > 1 and not self._tdb.get(peer.segments[0].key):
                peer.strike_out(peer.segments[0])
                peer.spare.append(peer.segments.popleft())
                taken = True
            if peer.segments[0].messages and not self._tdb.get(peer.segments[0].key):
                peer.strike_out(peer.segments[0])
                taken = True
        if taken:
            peer.look(0)
        return taken

    def _is_pending(self, peer: _Peer, record: bytes) -> bool:
        """Whether an identical message of ours is in the file."""
        for key in (peer.key, *(segment.key for segment in peer.segments)):
            if holds(self._tdb.get(key) or b"", record):
                return True
        return False

    def pending(self, pid: int) -> int:
        def values() -> list[bytes]:
            with self._all_keys() as keys:
                return [self._tdb.get(key) or b"" for key in keys if key_pid(key) == pid]

        return sum(map(count_messages, self._repairing(values)))

    def flush(self, timeout: float = 0.0) -> None:
        """Nothing waits in this process; a `timeout` waits until a receiver at its bound has taken something."""
        if not timeout or not self._full:
            return
        self._doorbell.drain()
        self._announce_sleep()
        if not self._some_have_room():
            poll = select.poll()
            for fd in (self._doorbell.fileno(), *(peer.pidfd for peer in self._full.values())):
                poll.register(fd, select.POLLIN)
            poll.poll(timeout * 1000)
            self._some_have_room()
        self._doorbell.drain()
        self._words[_EPOCH] = _AWAKE
        if self._watched:
            self._fall_asleep()

    def _some_have_room(self) -> bool:
        """Strike out the full peers that have taken something or have ended; whether there were any."""
        with _tdb_errors():
            relieved = [peer for peer in self._full.values() if not peer.lives() or self._forget_taken(peer)]
        for peer in relieved:
            del self._full[peer.pid]
        return bool(relieved)

    def _find(self, dst: ServerID) -> _Peer:
        """The peer for `dst`, as it is now; NoSuchProcess if that process is not here or closed."""
        peer = self._peers.get(dst.pid)
        if peer is not None and not peer.lives():
            self._forget(peer)
            peer = None
        if peer is None:
            peer = self._open_peer(dst)
            if len(self._peers) >= self._cached_peers:
                idle = next((one for one in self._peers.values() if not one.continuation or not one.lives()), None)
                if idle is not None:
                    self._forget(idle)
            self._peers[dst.pid] = peer
        check_unique_id(dst, peer.unique_id)
        return peer

    def _open_peer(self, dst: ServerID) -> _Peer:
        try:
            pidfd = os.pidfd_open(dst.pid)
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise TransportError(f"sending to {dst}: {error.strerror}") from error
            raise NoSuchProcess(f"no process {dst}") from None
        if dst.pid == self.presence.pid:
            return _Peer(Process(dst.pid, self.presence.unique_id), pidfd, self._words)
        try:
            mapped = map_words(self.presence.lock_dir_fd, dst.pid)
            if mapped is None:
                raise NoSuchProcess(f"no process {dst} takes messages of type tdb here")
        except OSError as error:
            os.close(pidfd)
            raise TransportError(f"sending to {dst}: {error.strerror}") from error
        except BaseException:
            os.close(pidfd)
            raise
        process, memory, lock_fd = mapped
        peer = _Peer(process, pidfd, shared_words(memory), memory, lock_fd)
        try:
            if not peer.lives():
                raise NoSuchProcess(f"process {dst} has closed its endpoint")
            signal.pidfd_send_signal(pidfd, 0)
        except BaseException as error:
            peer.close()
            if isinstance(error, PermissionError):
                raise TransportError(f"sending to {dst}: it is another user's, who cannot be signalled") from error
            if isinstance(error, ProcessLookupError):
                raise NoSuchProcess(f"no process {dst}") from None
            raise
        return peer

    def _forget(self, peer: _Peer) -> None:
        del self._peers[peer.pid]
        self._full.pop(peer.pid, None)
        peer.close()

    # Receiving

    def receive(self, deliver: Deliver) -> None:
        self._words[_EPOCH] = _AWAKE
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
            if not self._repaired(error):
                raise _transport_error(error) from error
        finally:
            if self._watched and not self._closed:
                self._fall_asleep()

    def _take(self) -> bool:
        """Move what is in the file to the inbox; whether there is something."""
        if self._in_hand:
            self._sort()
        if self._tdb.get(self._key):
            self._take_value(self._key, self._chain, None)
            self._sort()
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
        words[_TAKING] = 1
        try:
            _acquire(chain)
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
            words[_TAKING] = 0
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
        self._in_hand = b""
        self._inbox.extend(messages)

    def _end_continuations(self, messages: list[Message]) -> None:
        """A source that appends to our record (again) has nothing left in segments."""
        for message in messages:
            self._sources.pop((message.src.pid, message.src.unique_id), None)

    def _take_segment(self, source_key: tuple[int, int], source: _Source) -> None:
        """Take what is in the source's segment; forget the source if nothing is and it is dead."""
        self._take_value(source.key, self._chains.of(source.key), source_key, source.owns)
        if self._in_hand:
            self._sort()
            self._tell_of_room(ServerID(source_key[0], unique_id=source_key[1]))
            following = self._sources.get(source_key)
            if not self._inbox and following is not None and following is not source:
                self._take_segment(source_key, following)
        elif time.monotonic() - source.seen_alive > _SOURCE_CHECK:
            source.seen_alive = time.monotonic()
            is_alive = self.presence.is_alive(ServerID(source_key[0], unique_id=source_key[1]))
            if not is_alive and not self._has_segment(source):
                del self._sources[source_key]

    def _has_segment(self, source: _Source) -> bool:
        """Whether there is something in the segment to be read; only we take it away again."""
        return source.owns(self._tdb.get(source.key) or b"")

    def _tell_of_room(self, source: ServerID) -> None:
        """Wake a source that may be waiting at its bound."""
        with contextlib.suppress(NoSuchProcess, TransportError):
            peer = self._peers.get(source.pid)
            if peer is None or peer.unique_id != source.unique_id:
                peer = self._find(source)
            peer.ring_if_asleep()

    def _source_id(self, pid: int) -> ServerID:
        """Who has `pid` now, as the source of a record that names the pid alone."""
        peer = self._peers.get(pid)
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
            if not self._repaired(error):
                raise _transport_error(error) from error
            return True

    def _announce_sleep(self) -> None:
        """From here on senders signal."""
        self._doorbell.arm()
        self._epoch += 1
        self._words[_EPOCH] = self._epoch

    def _fall_asleep(self) -> None:
        """Announce it, and look once more: fileno() is readable if there is something."""
        self._announce_sleep()
        if self._has_messages():
            self._doorbell.ring()

    def wait(self, timeout: float | None, watched: int = -1) -> bool:
        if self._comes_soon():
            return False
        self._announce_sleep()
        if self._has_messages():
            return False
        ended = wait_readable(self._doorbell.fileno(), timeout, watched)
        self._doorbell.rung = True  # the handler may not have run yet, if this is not the main thread
        return ended

    def _comes_soon(self) -> bool:
        """Whether there is a message while we look a little longer."""
        for _ in range(self._looks):
            if self._has_messages():
                self._looks = min(2 * self._looks, _LOOKS_MAX)
                return True
        self._looks = max(self._looks // 2, _LOOKS_MIN)
        return False

    @contextlib.contextmanager
    def _all_keys(self) -> Iterator[list[bytes]]:
        """The keys of the file, which is locked meanwhile.

        A traversal locks the record it stands on by fcntl and then waits for the next chain's mutex; the lock over all
        has the mutexes and then waits for locked records.  Traversing under that lock keeps the two from dead-locking.
        """
        with self._all_locked():
            yield list(self._tdb.keys())

    @contextlib.contextmanager
    def _all_locked(self) -> Iterator[None]:
        """Hold the lock over all of the file.

        Taken inside the `try`: a signal's handler that raises (KeyboardInterrupt) does so as soon as the lock is held.
        """
        try:
            self._tdb.lock_all()
            yield
        finally:
            self._tdb.unlock_all()

    def _repairing(self, action: Callable[[], T]) -> T:
        """What the action returns; if it finds the file damaged, after a repair.  Raises TransportError."""
        try:
            return action()
        except RuntimeError as error:
            if not self._repaired(error):
                raise _transport_error(error) from error
        with _tdb_errors():
            return action()

    def _repaired(self, error: RuntimeError) -> bool:
        """Whether the file was damaged and is now usable again, with whatever could be read of it."""
        if error.args[:1] != (_CORRUPT,):
            return False
        records: dict[bytes, bytes] = {}
        try:
            with self._all_locked():
                keys = {queue_key(process.pid) for process in self.presence.processes()}
                with contextlib.suppress(RuntimeError):
                    for key in self._tdb:  # as far as that goes
                        keys.add(key)
                for peer in self._peers.values():
                    keys.update(segment.key for segment in (*peer.segments, *peer.spare))
                for source in self._sources.values():
                    stem = source.key.rpartition(b"/")[0]
                    keys.update(b"%b/%d\0" % (stem, slot) for slot in range(100))
                for key in keys:
                    with contextlib.suppress(RuntimeError):
                        value = self._tdb.get(key)
                        if value is not None:
                            records[key] = value
                self._tdb.clear()
                for key, value in records.items():
                    self._tdb.store(key, bytes(max(_PLACE, len(value))))
                    self._tdb.store(key, value)
                list(self._tdb.keys())  # a traversal that failed goes on holding the lock of a record: not any more
        except RuntimeError:
            return False
        logger.error("messages.tdb was damaged, perhaps by a kill; it is made anew with %d queues", len(records))
        return True

    # The end

    @classmethod
    def depths(cls, config: Config, directory: RendezvousDirectory) -> Mapping[int, int]:
        try:
            database = _open_file(config, directory, 0)
        except BackendUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.ENOENT, errno.EIO):
                return {}  # EIO: it has just been emptied, as nobody has it open
            raise
        depths: Counter[int] = Counter()
        try:
            with _tdb_errors():
                database.lock_all()
                try:
                    for key in list(database.keys()):
                        pid = key_pid(key)
                        if pid is not None:
                            depths[pid] += count_messages(database.get(key) or b"")
                finally:
                    database.unlock_all()
        finally:
            database.close()
        return depths

    def left_behind(self) -> Collection[int]:
        """The pids that have records, but for living processes without a lock file: Samba 3.0's have none.

        Slots have two: their receiver's, and, if they are empty, their source's.
        """
        pids = self._repairing(self._pids_of_records)
        return {pid for pid in pids if not os.path.exists(f"/proc/{pid}")}

    def _pids_of_records(self) -> set[int]:
        with self._all_keys() as keys:
            receivers = {key_pid(key) for key in keys}
            sources = {key_source_pid(key) for key in keys if not self._tdb.get(key)}
        return {pid for pid in receivers | sources if pid is not None}

    def remove(self, pid: int) -> None:
        self._repairing(lambda: self._remove(pid))

    def _remove(self, pid: int) -> None:
        with self._all_keys() as keys:
            for key in keys:
                if key_pid(key) == pid or (key_source_pid(key) == pid and not self._tdb.get(key)):
                    self._tdb.delete(key)

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(0, 0, 0)

    def give_up(self) -> int:
        return 0

    def close(self) -> None:
        if self._closed:
            return
        self._words[_EPOCH] = _CLOSED
        try:
            if self._tdb.get(self._key):
                self._take_value(self._key, self._chain, None)
                self._sort()  # its sources may be waiting for room
            for pid, unique_id in self._sources:
                self._tell_of_room(ServerID(pid, unique_id=unique_id))
            for peer in self._peers.values():
                for slot in peer.spare:
                    self._delete(slot.key)
            self.remove(self.presence.pid)
        finally:
            self.abandon()

    def abandon(self) -> None:
        self._closed = True
        self._doorbell.close()
        self._tdb.close()
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()
        self._full.clear()
        self._words.release()


def _acquire(chain: ChainLock) -> None:
    """Take a chain's lock; RuntimeError, as the module raises it, if it cannot be had."""
    if chain.acquire():
        raise RuntimeError(_LOCK_FAILED, "a record cannot be locked")


def _open_tdb(config: Config, presence: Presence) -> tdb.Tdb:
    """Open messages.tdb in the mode that is configured; the first process of a directory finds it empty."""
    _set_aside_if_damaged(presence.directory_fd, os.path.join(config.lock_directory, FILE_NAME))
    return _open_file(config, presence, os.O_CREAT)


def _open_file(config: Config, directory: RendezvousDirectory, open_flags: int) -> tdb.Tdb:
    """The open file; BackendUnavailable, with the OSError as its cause if there is one, if it cannot be had."""
    flags, chains = tdb.CLEAR_IF_FIRST, 0
    if not config.use_mmap:
        flags |= tdb.NOMMAP
    elif config.tdb_mutexes:
        flags, chains = flags | _MUTEX_LOCKING, _MUTEX_CHAINS
    path = os.path.join(config.lock_directory, FILE_NAME)
    others = "living processes use it with another `msgd:tdb mutexes` or `use mmap`: give all of them the same"
    try:
        database = tdb.Tdb(
            f"/proc/self/fd/{directory.directory_fd}/{FILE_NAME}",
            chains,
            flags,
            os.O_RDWR | os.O_NOFOLLOW | open_flags,
            0o600,
        )
    except PermissionError as error:
        raise BackendUnavailable(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise BackendUnavailable(f"{path}: {error.strerror}; is its file system full? Perhaps {others}") from error
    if chains and database.hash_size != chains:  # libtdb is content with fcntl locks if it finds them in use
        database.close()
        raise BackendUnavailable(f"{path}: {others}")
    return database


def _set_aside_if_damaged(directory_fd: int, path: str) -> None:
    """Rename a file that is no tdb out of the way, so that the processes can start.

    Under a lock: of two that start, the second must not set aside what the first has made in its place.
    """
    fcntl.flock(directory_fd, fcntl.LOCK_EX)
    try:
        _rename_if_damaged(directory_fd, path)
    finally:
        fcntl.flock(directory_fd, fcntl.LOCK_UN)


def _rename_if_damaged(directory_fd: int, path: str) -> None:
    try:
        fd = os.open(FILE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnsafeDirectory(f"{path}: {error.strerror}; it must be a tdb file, remove it") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UnsafeDirectory(f"{path} is not a regular file; remove it")
        start = os.pread(fd, len(_MAGIC), 0)
    finally:
        os.close(fd)
    if start and start != _MAGIC:
        aside = f"{FILE_NAME}.damaged.{time.time_ns()}"
        os.rename(FILE_NAME, aside, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        logger.error("%s is no tdb file; it is set aside as %s and a new one made", path, aside)


@contextlib.contextmanager
def _tdb_errors() -> Iterator[None]:
    """Turn what the tdb module raises into TransportError."""
    try:
        yield
    except RuntimeError as error:
        raise _transport_error(error) from error


def _transport_error(error: RuntimeError) -> TransportError:
    return TransportError(f"messages.tdb: {error.args[-1]}; is its file system full?")


def _cannot_carry(message_type: int) -> MessageTooLarge:
    if message_type > TYPE_MAX:
        return MessageTooLarge(f"message type {message_type:#x} does not fit a record's 31 bits; use dgram or stream")
    return MessageTooLarge("messaging type tdb carries no file descriptors; use dgram or stream")


BACKEND = TdbBackend
