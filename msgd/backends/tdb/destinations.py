# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The destinations that this process keeps open, by pid.

At most a fixed number of them is kept, since each costs file descriptors.  One is evicted only when another is opened,
and never one with messages of ours in segments: a destination that is opened again begins at PID/<pid>, and forgets how
many messages of ours wait for it.  So there can be more, as many as have not read what we have sent them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from msgd.backends.sockets import cached_destinations, check_unique_id
from msgd.backends.tdb.destination import DESCRIPTORS, Destination, open_destination
from msgd.backends.tdb.libtdb import tdb_errors
from msgd.backends.tdb.messages_file import MessagesFile
from msgd.backends.tdb.outgoing import Bounds, Outgoing
from msgd.backends.tdb.words import FILE
from msgd.config import Config
from msgd.errors import NoSuchProcess, TransportError
from msgd.presence import Presence
from msgd.wire.server_id import ServerID
from msgd.wire.tdb_record import queue_key


class Destinations:
    """The open destinations, and which of them have refused a message because their queue was full."""

    def __init__(self, config: Config, presence: Presence, own_words: memoryview, file: MessagesFile) -> None:
        self.open: dict[int, Outgoing] = {}
        self._full: dict[int, Outgoing] = {}
        self._max = cached_destinations(DESCRIPTORS)
        self._bounds = Bounds.of(config)
        self._presence = presence
        self._own_words = own_words
        self._file = file

    def find(self, dst: ServerID) -> Outgoing:
        """The destination that `dst` names.  Raises NoSuchProcess, TransportError."""
        outgoing = self.open.get(dst.pid)
        if outgoing is not None and not outgoing.destination.is_alive():
            self.forget(outgoing)
            outgoing = None
        if outgoing is None:
            outgoing = self._open(dst)
        check_unique_id(dst, outgoing.destination.unique_id)
        return outgoing

    def _open(self, dst: ServerID) -> Outgoing:
        outgoing = self._open_outgoing(dst)
        opened = self.open.get(dst.pid)
        if opened is not None:  # by tell_moved(), while we met it
            outgoing.destination.close()
            return opened
        if len(self.open) >= self._max:
            self._evict_one()
        self.open[dst.pid] = outgoing
        return outgoing

    def _open_outgoing(self, dst: ServerID) -> Outgoing:
        try:
            destination = open_destination(dst, self._presence, self._own_words)
        except NoSuchProcess:
            if self._presence.samba3 is None:
                raise
            from msgd.backends.tdb.samba3 import open_samba3  # rarely needed

            samba3 = open_samba3(dst.pid, self._presence, self._file, self._bounds)
            if samba3 is None:
                raise
            return samba3
        if destination.words[FILE] != self._own_words[FILE]:
            try:
                self._meet(destination)
            except BaseException:
                destination.close()
                raise
        source = self._presence.pid, self._presence.unique_id
        return Outgoing(destination, source, self._file, self._bounds)  # it appends to the file that we use now

    def _meet(self, destination: Destination) -> None:
        """Make sure that we and a process with another file use the same."""
        file = self._file
        file.look()
        if destination.words[FILE] != self._own_words[FILE]:
            destination.signal()  # it looks, too, and moves
            with tdb_errors(), file.changing_space():
                file.ensure_record(queue_key(destination.pid))

    def tell_moved(self) -> None:
        """Signal every process that uses another file than we: it looks, and moves."""
        with contextlib.suppress(TransportError, OSError):  # no descriptors are left
            for process in self._presence.processes():
                with contextlib.suppress(NoSuchProcess):
                    destination = self.find(ServerID(process.pid, unique_id=process.unique_id)).destination
                    if destination.words[FILE] != self._own_words[FILE]:
                        destination.signal()

    def _evict_one(self) -> None:
        candidates = sorted(self.open.values(), key=lambda outgoing: bool(outgoing.segments.continuation))
        with tdb_errors():
            for outgoing in candidates:
                if not outgoing.destination.is_alive() or outgoing.may_be_forgotten():
                    self.forget(outgoing)
                    return

    def forget(self, outgoing: Outgoing) -> None:
        """Close a destination."""
        pid = outgoing.destination.pid
        del self.open[pid]
        self._full.pop(pid, None)
        outgoing.destination.close()

    def forget_dead(self) -> None:
        """Close all destinations that have ended: each costs file descriptors."""
        for outgoing in list(self.open.values()):
            if not outgoing.destination.is_alive():
                self.forget(outgoing)

    def delete_idle_slots(self) -> None:
        """Delete the empty slots of the destinations that have needed none for a while."""
        for outgoing in list(self.open.values()):
            outgoing.segments.slots.delete_idle()

    def server_id_of(self, pid: int) -> ServerID:
        """The full address of task 0 of the process that has this pid now; without a unique id if there is none."""
        outgoing = self.open.get(pid)
        if outgoing is None or not outgoing.destination.is_alive():
            try:
                outgoing = self.find(ServerID(pid))
            except (NoSuchProcess, TransportError):
                return ServerID(pid)
        return outgoing.destination.server_id

    def wake_up(self, process: ServerID) -> bool:
        """Wake up a process that may be waiting for room in our queue.  Returns False if it has ended."""
        outgoing = self.open.get(process.pid)
        try:
            if outgoing is None or outgoing.destination.unique_id != process.unique_id:
                outgoing = self.find(process)
        except NoSuchProcess:
            return False
        except TransportError:  # no descriptor is left, or we may not signal it
            return True
        outgoing.destination.wake_up()
        return outgoing.destination.is_alive()

    def wake_up_everybody(self) -> None:
        """Wake up all processes: some wait for room in our queue that could not even announce a segment there."""
        with contextlib.suppress(TransportError, OSError):  # no descriptors are left
            for process in self._presence.processes():
                self.wake_up(ServerID(process.pid, unique_id=process.unique_id))

    # Waiting for room

    @property
    def are_full(self) -> bool:
        """Whether there is a destination that has refused a message and is not known to have room again."""
        return bool(self._full)

    def note_full(self, outgoing: Outgoing) -> None:
        """Note that this destination has refused a message."""
        self._full[outgoing.destination.pid] = outgoing

    def some_have_room(self) -> bool:
        """Whether one of those that refused a message has taken something or has ended; strike out all that have."""
        with tdb_errors():
            relieved = [
                outgoing
                for outgoing in self._full.values()
                if not outgoing.destination.is_alive() or outgoing.uncount_taken()
            ]
        for outgoing in relieved:
            del self._full[outgoing.destination.pid]
        return bool(relieved)

    def full_pidfds(self) -> Iterable[int]:
        """The pidfds of those that refused a message; each polls readable when the process ends."""
        return [outgoing.destination.pidfd for outgoing in self._full.values()]

    def close(self) -> None:
        """Close all destinations."""
        for outgoing in self.open.values():
            outgoing.destination.close()
        self.open.clear()
        self._full.clear()
