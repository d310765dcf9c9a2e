# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A process of msgbench torture: it sends messages to the others, checks what it receives, and counts."""

from __future__ import annotations

import mmap
import random
import struct
import time
import zlib
from collections import Counter
from multiprocessing.connection import Connection
from typing import NamedTuple

from msgd.bench.endpoints import DATA, FINAL, dispatch_until, serve_until_told
from msgd.config import Config
from msgd.errors import NoSuchProcess, QueueFull
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

_BURST = 8
"""Messages sent between two dispatches."""

_BACKLOG_BYTES = 16 << 20
"""A process whose backlog is larger waits for the others instead of sending."""

_PAUSE = 0.05
"""Seconds that a process waits for messages at a time while it cannot send."""

HEADER = struct.Struct("<QI")
"""A message's sequence number in its pair, and the checksum of the number and the data."""


class Report(NamedTuple):
    """What a survivor reports at the end.

    `sent` and `received` count the messages by the other's pid; a doubled message counts once.  `errors` counts
    those that arrived doubled, reordered or damaged.  `finished` has the pids whose last message has arrived.
    """

    sent: dict[int, int]
    received: dict[int, int]
    errors: dict[str, int]
    finished: frozenset[int]


class Counters:
    """The counters of one process, in memory shared with the parent so that they survive a kill."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.values = memoryview(self._memory).cast("Q")

    SENT, DELIVERED, NO_SUCH_PROCESS, QUEUE_FULL = range(4)


class Setup(NamedTuple):
    """What a process is given.  `noise` is the random data from which it cuts its messages."""

    noise: bytes
    max_size: int
    rng: random.Random
    counters: Counters
    patience: float


def run_process(channel: Connection, config: Config, setup: Setup) -> None:
    with Messaging(config) as messaging:
        channel.send(messaging.server_id)
        process = _Process(messaging, channel, setup)
        process.send_until_told()
        channel.send(process.finish())
        serve_until_told(messaging, channel)


class _Process:
    """A process of the torture: it sends, checks what it receives, and counts."""

    def __init__(self, messaging: Messaging, channel: Connection, setup: Setup) -> None:
        self._messaging = messaging
        self._channel = channel
        self._noise, self._max_size, self._rng, counters, self._patience = setup
        self._values = counters.values
        self._others: list[ServerID] = []
        self._sent: Counter[int] = Counter()
        self._received: Counter[int] = Counter()
        self._next: dict[ServerID, int] = {}
        self._skipped: dict[ServerID, set[int]] = {}
        self._errors: Counter[str] = Counter()
        self._finished: set[int] = set()
        messaging.register(DATA, self._check)
        messaging.register(FINAL, lambda message: self._finished.add(message.src.pid))

    def _check(self, message: Message) -> None:
        src, data = message.src, message.data
        self._values[Counters.DELIVERED] += 1
        number, checksum = HEADER.unpack_from(data)
        if checksum != zlib.crc32(data[HEADER.size :], number):
            self._errors["damaged"] += 1
        expected = self._next.get(src, 0)
        if number == expected:
            self._next[src] = number + 1
        elif number > expected:
            self._skipped.setdefault(src, set()).update(range(expected, number))
            self._next[src] = number + 1
        elif number in self._skipped.get(src, ()):
            self._skipped[src].remove(number)
            self._errors["reordered"] += 1
        else:
            self._errors["doubled"] += 1
            return
        self._received[src.pid] += 1

    def send_until_told(self) -> None:
        """Send to the processes that the parent names, and dispatch, until the parent sends None."""
        messaging = self._messaging
        serve_until_told(messaging, self._channel)
        while True:
            if self._channel.poll():
                others: list[ServerID] | None = self._channel.recv()
                if others is None:
                    return
                self._others = [one for one in others if one != messaging.server_id]
            for _ in range(_BURST):
                if self._others:
                    self._send(self._rng.choice(self._others))
            messaging.dispatch()
            if messaging.statistics().queued_bytes > _BACKLOG_BYTES:
                messaging.dispatch(_PAUSE)

    def _send(self, dst: ServerID) -> None:
        # The size is uniform on a logarithmic scale, so that small messages are frequent.
        length = int((self._max_size + 1) ** self._rng.random()) - 1
        at = self._rng.randrange(len(self._noise) - length)
        data = self._noise[at : at + length]
        number = self._sent[dst.pid]
        try:
            self._messaging.send(dst, DATA, HEADER.pack(number, zlib.crc32(data, number)) + data)
        except NoSuchProcess:
            self._values[Counters.NO_SUCH_PROCESS] += 1
            self._others.remove(dst)
        except QueueFull:
            self._values[Counters.QUEUE_FULL] += 1
        else:
            self._sent[dst.pid] += 1
            self._values[Counters.SENT] += 1

    def finish(self) -> Report:
        """Send each process a last message, wait for those of the others, and report."""
        messaging = self._messaging
        for other in self._others:
            self._send_last(other)
        wanted = {other.pid for other in self._others}
        dispatch_until(messaging, lambda: wanted <= self._finished, self._patience)
        return Report(dict(self._sent), dict(self._received), dict(self._errors), frozenset(self._finished))

    def _send_last(self, dst: ServerID) -> None:
        """Send the last message.  Dispatch meanwhile, because the receiver may be waiting for this process to read."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                self._messaging.send(dst, FINAL)
                return
            except QueueFull:
                if time.monotonic() > deadline:
                    raise
                self._messaging.dispatch(_PAUSE)
