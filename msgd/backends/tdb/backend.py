# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The Backend of messaging type tdb: records in messages.tdb, and SIGUSR1 to a receiver that sleeps.

This is only the face; each part of the protocol is in one file, which gives its rules:

    messages_file.py   the file, and what keeps it whole when a process is killed (repair.py rebuilds it)
    outgoing.py        where our messages to one destination go, and how many may wait
    segments.py        where they continue when the destination's record is deep
    grants.py          how many senders append to one record without its lock, and without outgrowing it
    inbox.py           how a receiver takes its messages
    sleep.py           why no message is slept through (doorbell.py: SIGUSR1 as a descriptor)
    opening.py         how the file is opened, and one that is no tdb file is set aside
    moving.py          what happens if its owner replaces or damages it while processes use it
    destination.py     which process is signalled (destinations.py keeps them)
    words.py           what a receiver tells its senders in shared memory
    chain_lock.py      the lock of one record (libtdb.py: the names that Python's module lacks)

The formats of the records are in wire/tdb_record.py.

The dead.  What was queued for a dead process is removed by clean-up, under the lock of its lock file; and by a process
that starts with the same pid, before it shares its words and anybody can send to it.  A record that a kill has left
incomplete is skipped and counted.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from msgd.backends.at_once import move_all
from msgd.backends.base import Backend, BackendStatistics, Deliver, PlainSender
from msgd.backends.spin import Spinner
from msgd.backends.tdb.destination import Destination, WakeUps
from msgd.backends.tdb.destinations import Destinations
from msgd.backends.tdb.doorbell import Doorbell
from msgd.backends.tdb.grants import DEEPEST
from msgd.backends.tdb.inbox import Inbox
from msgd.backends.tdb.libtdb import tdb_errors
from msgd.backends.tdb.messages_file import MessagesFile, read_messages_file
from msgd.backends.tdb.moving import Mover
from msgd.backends.tdb.outgoing import Outgoing
from msgd.backends.tdb.segments import Segments
from msgd.backends.tdb.sleep import Sleep
from msgd.backends.tdb.words import AWAKE, CLOSED, EPOCH, FILE, TAKING
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import MessageTooLarge, QueueFull, TransportError
from msgd.linux import new_poll
from msgd.native import native
from msgd.presence import Presence, RendezvousDirectory
from msgd.results import SendStatus
from msgd.wire.server_id import ANY_UNIQUE_ID, ServerID
from msgd.wire.tdb_record import (
    RECORD_TYPE_MAX,
    RECORD_WITH_IDS,
    count_messages,
    key_pid,
    key_source_pid,
    pack_message,
    pack_messages,
    queue_key,
)

_SENT = SendStatus.SENT

_SPINS_CROWDED = 128
"""Polls before a sleep if other processes want the processors: a signal costs both sides as much as 20 messages."""

_TAKES_PER_CALL = 16
"""receive() returns after it has taken this often, so that a flood does not keep dispatch from its other work."""


class TdbBackend(Backend):
    """The endpoint of this process in messages.tdb."""

    carries_fds = False
    needs_main_thread = True

    def __init__(self, config: Config, presence: Presence, drops: Drops) -> None:
        super().__init__(config, presence, drops)
        self._closed = False
        """Whether abandon() was called, which a signal's handler may have done while receive() runs."""
        self._polled_for_room = False
        """Whether the next flush() ends the sleep that poll_for_room() has announced."""
        self._wake_ups = WakeUps()
        self._doorbell = Doorbell()
        try:
            self._file = MessagesFile(config, presence)
        except BaseException:
            self._doorbell.close()
            raise
        try:
            self._file.keys_of_the_living = self._keys_of_the_living
            self._file.repairing(self._make_own_record)
            self._words = presence.share_words(AWAKE)
        except BaseException as error:
            self._file.close()
            self._doorbell.close()
            if isinstance(error, OSError):
                raise TransportError(f"the lock file of pid {presence.pid}: {error.strerror}") from error
            raise
        self._destinations = Destinations(config, presence, self._words, self._file)
        self._open_destinations = self._destinations.open
        self._inbox = Inbox(presence, self._words, self._file, self._destinations, drops)
        self.spinner = Spinner(_SPINS_CROWDED)
        spin = partial(self._inbox.spin, self._has_messages, self.spinner)
        self._sleep = Sleep(self._doorbell, self._words, self._has_messages, spin)
        self._mover = Mover(self._file, self._words, self._doorbell, self._sleep, self._inbox, self._destinations)
        self._wake_ups.meet = self._meet

    def _make_own_record(self) -> None:
        """Make PID/<our pid>, in place of what a dead process with our pid has left behind."""
        self._remove(self.presence.pid)
        with self._file.changing_space():
            self._file.make_record(queue_key(self.presence.pid))

    def _keys_of_the_living(self) -> set[bytes]:
        """The keys of the records that living processes must have."""
        return {queue_key(pid) for pid in (self.presence.pid, *(one.pid for one in self.presence.processes()))}

    def fileno(self) -> int:
        return self._sleep.fileno()

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
        self._mover.look_if_due()
        pid, _, _, unique_id = dst
        outgoing = self._open_destinations.get(pid)
        if (
            outgoing is None
            or (unique_id != outgoing.destination.unique_id and unique_id not in ANY_UNIQUE_ID)
            or not outgoing.destination.is_alive()
        ):
            outgoing = self._destinations.find(dst)
        if fds or message_type > RECORD_TYPE_MAX:
            raise _cannot_carry(message_type)
        destination = outgoing.destination
        words = destination.words
        record = pack_message(dst, src, message_type, data)
        try:
            try:
                if not duplicates_allowed and outgoing.is_pending(record):
                    return SendStatus.MERGED
                if words[TAKING]:
                    destination.spin_while_taking()
                outgoing.append(record)
            except RuntimeError as error:
                self._file.repair(error)
                with tdb_errors():
                    outgoing.append_checked(record)
        except QueueFull:
            self._destinations.note_full(outgoing)
            raise
        finally:  # also if a signal handler raises: the message may be there
            if words[EPOCH] != destination.signalled_epoch:
                self._wake_ups.add(destination)
        return _SENT

    def send_batch(self, dst: ServerID, src: ServerID, messages: Sequence[tuple[int, bytes]]) -> bool:
        size = len(messages) * RECORD_WITH_IDS.size + sum(len(data) for _, data in messages)
        if size > DEEPEST or max(messages)[0] > RECORD_TYPE_MAX or dst.unique_id in ANY_UNIQUE_ID:
            return False
        self._mover.look_if_due()
        outgoing = self._open_destinations.get(dst.pid)
        if outgoing is None or dst.unique_id != outgoing.destination.unique_id or not outgoing.destination.is_alive():
            return False  # send() opens it, or says what has become of it
        destination = outgoing.destination
        words = destination.words
        try:
            if words[TAKING]:
                destination.spin_while_taking()
            return outgoing.append_batch(pack_messages(dst, src, messages), len(messages))
        except RuntimeError as error:
            self._file.repair(error)
            return False
        finally:  # also if a signal handler raises: the messages may be there
            if words[EPOCH] != destination.signalled_epoch:
                self._wake_ups.add(destination)

    def _meet(self, destination: Destination) -> None:
        """If a destination uses another file than we, one of us has to move (moving.py)."""
        with contextlib.suppress(TransportError):  # the next send() reports it
            while destination.words[FILE] != self._words[FILE] and self._mover.look():
                pass  # it may have moved on meanwhile; we move only if there is yet another file

    def plain_sender(self, lock: threading.RLock) -> PlainSender | None:
        if native is None or self._file.compiled is None:
            return None
        sender: PlainSender = native.record_sender(
            lock, ServerID, self._open_destinations, _SENT, Outgoing, Destination, Segments, self._file.compiled,
            self._wake_ups, self.config.max_message_size,
        )  # fmt: skip
        return sender

    def begin_gathering(self, few: bool = False) -> None:
        """Messages go into the file at once, but their receiver is woken up by the next flush()."""
        self._wake_ups.depth += 1

    def end_gathering(self) -> bool:
        self._wake_ups.depth -= 1
        return bool(self._wake_ups)

    def flush(self, timeout: float = 0.0) -> None:
        """Nothing waits in this process; with a `timeout`, wait until a full destination takes something."""
        self._wake_ups.flush()
        if self._polled_for_room or timeout:
            self._mover.look_if_due()
        if self._polled_for_room:
            self._polled_for_room = False
            self._sleep.begin_work()
            self._sleep.end_work()
        if timeout and self._destinations.are_full:
            self._sleep.wait_until(self._destinations.some_have_room, self._destinations.full_pidfds, timeout)
            self._mover.look_if_due()

    def pending(self, pid: int) -> int:
        def values() -> list[bytes]:
            with self._file.all_keys() as keys:
                return [self._file.tdb.get(key) or b"" for key in keys if key_pid(key) == pid]

        return sum(map(count_messages, self._file.repairing(values)))

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(0, 0, 0)

    def give_up(self) -> int:
        return 0

    # Receiving

    def wake(self) -> None:
        if not self._closed:
            self._doorbell.ring()

    def poll_for_room(self) -> select.poll:
        self._polled_for_room = True
        self._sleep.announce()
        if self._destinations.some_have_room():
            self._doorbell.ring()
        poll = new_poll()
        for fd in (self._doorbell.fileno(), *self._destinations.full_pidfds()):
            poll.register(fd, select.POLLIN)
        return poll

    def receive(self, deliver: Deliver) -> None:
        inbox = self._inbox
        if not (inbox.sources or self._mover.is_due) and self._sleep.stays_prepared():
            return
        self._sleep.begin_work()
        messages = inbox.messages
        try:
            self._mover.look_if_due()
            if inbox.take_plain(deliver, _TAKES_PER_CALL):
                return
            for _ in range(_TAKES_PER_CALL):
                if not messages and not inbox.take():
                    return
                move_all(messages, deliver)
                if self._closed:
                    return
        except RuntimeError as error:
            self._file.repair(error)
        finally:
            if self._sleep.is_watched and not self._closed:
                self._sleep.end_work()

    def wait(self, timeout: float | None, watched: int = -1) -> bool:
        return self._sleep.wait(timeout, watched)

    def _has_messages(self) -> bool:
        try:
            return self._inbox.has_messages()
        except RuntimeError:
            return True  # receive() finds it as well, and repairs it

    # The dead, and the end

    @classmethod
    def depths(cls, config: Config, directory: RendezvousDirectory) -> Mapping[int, int]:
        depths: Counter[int] = Counter()
        for key, value in read_messages_file(config, directory).items():
            pid = key_pid(key)
            if pid is not None:
                depths[pid] += count_messages(value)
        return depths

    def left_behind(self) -> Collection[int]:
        """The pids that have records and do not exist.

        A pid that exists is left out even if it has no lock file, since it can be a process of Samba 3.0.  A slot
        belongs to its receiver; an empty one belongs to its source as well.
        """
        self._mover.look()
        self._destinations.forget_dead()
        self._file.repairing(self._file.shrink)
        pids = self._file.repairing(self._pids_of_records)
        return {pid for pid in pids if not os.path.exists(f"/proc/{pid}")}

    def _pids_of_records(self) -> set[int]:
        with self._file.all_keys() as keys:
            receivers = {key_pid(key) for key in keys}
            sources = {key_source_pid(key) for key in keys if not self._file.tdb.get(key)}
        return {pid for pid in receivers | sources if pid is not None}

    def remove(self, pid: int) -> None:
        self._file.repairing(lambda: self._remove(pid))

    def _remove(self, pid: int) -> None:
        database = self._file.tdb
        with self._file.all_keys() as keys:
            removed = [
                key for key in keys if key_pid(key) == pid or (key_source_pid(key) == pid and not database.get(key))
            ]
            if removed:
                with self._file.changing_space():
                    for key in removed:
                        self._file.delete(key)
                self._file.shrink()

    def close(self) -> None:
        if self._closed:
            return
        with contextlib.suppress(TransportError):
            self._mover.look_if_due()
        self._words[EPOCH] = CLOSED
        try:
            self._inbox.take_last()
            self.remove(self.presence.pid)
        finally:
            self.abandon()

    def abandon(self) -> None:
        self._closed = True
        self._doorbell.close()
        self._file.close()
        self._destinations.close()
        self._words.release()


def _cannot_carry(message_type: int) -> MessageTooLarge:
    if message_type > RECORD_TYPE_MAX:
        return MessageTooLarge(f"message type {message_type:#x} does not fit a record's 31 bits; use dgram or stream")
    return MessageTooLarge("messaging type tdb carries no file descriptors; use dgram or stream")
