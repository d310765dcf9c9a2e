# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A process of Samba 3.0 as a destination: it is sent to as another process of Samba 3.0 sends to it.

Rule 1. Each message is followed by SIGUSR1.  Samba 3.0 knows neither epochs nor shared words.
Rule 2. Messages go to PID/<pid> only, and without ids: Samba 3.0 knows neither segments nor records of version 2.
Rule 3. What it is must be proven again before each signal (presence/samba3.py).
Rule 4. The room of its record is not known, since it stores its record itself.  So each append counts as a change of
    space (messages_file.py, rule 2).  That is slower, and a kill in the middle leaves the file sound.

A limit of Rule 4: an append that outgrows the record deletes it first, as in Samba 3.0.  A kill between the two loses
what waits in it.
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
from collections.abc import Callable

from msgd.backends.tdb.destination import Destination
from msgd.backends.tdb.messages_file import MessagesFile
from msgd.backends.tdb.outgoing import Bounds, Outgoing
from msgd.backends.tdb.words import EPOCH
from msgd.errors import NoSuchProcess, QueueFull
from msgd.presence import Presence
from msgd.presence.samba3 import Samba3Process
from msgd.wire.tdb_record import count_messages, without_ids

_ASLEEP = 1
"""An epoch for which no signal has been noted, so that each message is signalled."""


class Samba3Destination(Destination):
    """One process of Samba 3.0.  `is_proven` looks again whether it is one."""

    __slots__ = ("_is_proven",)

    def __init__(self, process: Samba3Process, pidfd: int, is_proven: Callable[[], bool]) -> None:
        words = memoryview(array.array("Q", bytes(64 * 8)))
        words[EPOCH] = _ASLEEP
        super().__init__(process, pidfd, words, words)
        self._is_proven = is_proven

    def holds_lock(self) -> bool:
        """Whether it is still there, and still one of Samba 3.0."""
        return self._is_proven()

    def wake_up(self) -> None:
        """Signal the process (Rules 1, 3)."""
        with contextlib.suppress(ProcessLookupError):
            if self._is_proven():
                signal.pidfd_send_signal(self.pidfd, signal.SIGUSR1)


class Samba3Outgoing(Outgoing):
    """Our messages to a process of Samba 3.0.  The bounds count everybody's messages in its record."""

    __slots__ = ()

    def append(self, record: bytes) -> None:
        """Append a packed message to PID/<pid>.  Raises QueueFull, NoSuchProcess, RuntimeError."""
        self.append_checked(record)

    def append_batch(self, records: bytes, messages: int) -> bool:
        """Each message is appended by itself, without its ids."""
        return False

    def append_checked(self, record: bytes) -> None:
        """Do what append() does."""
        record = without_ids(record)
        if self.destination.has_ended():
            raise NoSuchProcess(f"process {self.destination.server_id} has ended")
        with self._file.changing_space():
            value = self._tdb.get(self.key)
            if value is None:
                self._file.make_record(self.key)
            elif value:
                self._check_room(value, len(record))
            self._tdb.append(self.key, record)

    def uncount_taken(self) -> bool:
        """Whether there may be room."""
        value = self._tdb.get(self.key) or b""
        return len(value) < self._bounds.bytes and count_messages(value) < self._bounds.messages

    def _check_room(self, value: bytes, size: int) -> None:
        messages = count_messages(value)
        if messages >= self._bounds.messages or len(value) + size > self._bounds.bytes:
            raise QueueFull(
                f"pid {self.destination.pid} does not read: {messages} messages ({len(value)} bytes) wait for it, the"
                f" bound is {self._bounds.messages} messages and {self._bounds.bytes} bytes"
            )


def open_samba3(pid: int, presence: Presence, file: MessagesFile, bounds: Bounds) -> Samba3Outgoing | None:
    """Our messages to the process with this pid; None if that is not proven to be one of Samba 3.0."""
    if presence.samba3 is None:
        return None
    samba3 = presence.samba3
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    process = samba3.process(pid)
    if process is None:
        os.close(pidfd)
        return None
    destination = Samba3Destination(process, pidfd, lambda: samba3.process(pid) is not None)
    return Samba3Outgoing(destination, (presence.pid, presence.unique_id), file, bounds)
