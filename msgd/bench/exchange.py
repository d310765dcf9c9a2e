# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The loop of LOCAL-MESSAGING: send bursts, receive answers, and keep at most one window in flight."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

from msgd.bench.results import Outcome

RATE = "rate"
CPU = "cpu"

_CPUCLOCK_SCHED = 2
"""With a pid it makes the number of the process's processor time clock, as clock_getcpuclockid(3) does."""


class Load(NamedTuple):
    """What is sent: for `seconds`, `messages` over and over, at most `window` of them unanswered.

    `patience`: how many seconds without an answer mean that a message is lost.
    """

    seconds: float
    window: int
    messages: tuple[bytes, ...]
    patience: float

    @property
    def bursts(self) -> tuple[tuple[bytes, ...], ...]:
        """What is sent at once, in turn: all messages, or where the window is too small each for itself."""
        return (self.messages,) if len(self.messages) <= self.window else tuple((data,) for data in self.messages)


class Tally(NamedTuple):
    """What came of it: messages sent, answers received, seconds from the first message to the last answer.

    `cpu`: seconds of processor time of all processes that took part; None if that is not known.
    """

    sent: int
    received: int
    seconds: float
    cpu: float | None = None

    @property
    def failure(self) -> str:
        """What is wrong with it; nothing if each message has its answer."""
        if self.received < self.sent:
            return f"{self.sent - self.received} of {self.sent} answers are missing"
        return f"{self.received - self.sent} answers too many" if self.received > self.sent else ""

    def outcome(self) -> Outcome:
        """The rate in messages and answers a second, and the microseconds of processor time for each."""
        number = self.sent + self.received
        figures = {RATE: number / self.seconds}
        return self.outcome_of(figures if self.cpu is None else figures | {CPU: 1e6 * self.cpu / number})

    def outcome_of(self, figures: Mapping[str, float]) -> Outcome:
        """These figures, which count only if nothing is wrong."""
        failure = self.failure
        return Outcome({} if failure else figures, {"sent": self.sent, "received": self.received}, failure)


def exchange(send: Callable[[bytes], object], receive: Callable[[], int], load: Load) -> Tally:
    """Send for the load's time and wait for the last answer.

    `receive` waits for at least one answer and returns how many came; 0 means that none has for too long.
    """
    clock = time.perf_counter
    bursts = cycle(load.bursts)
    limit = load.window - len(load.bursts[0])
    sent = received = 0
    began = now = clock()
    end = began + load.seconds
    while now < end:
        while sent - received <= limit:
            for data in next(bursts):
                send(data)
                sent += 1
        got = receive()
        if not got:
            return Tally(sent, received, clock() - began)
        received += got
        now = clock()
    while received < sent:
        got = receive()
        if not got:
            break
        received += got
    return Tally(sent, received, clock() - began)


def with_cpu(exchanging: Callable[[], Tally], others: Sequence[int]) -> Tally:
    """Exchange, and measure the processor time that this process and the others (by pid) use for it.

    That is what a message costs on a machine that has other work as well, where the rate says little.
    """
    pids = (os.getpid(), *others)
    began = _cpu_seconds(pids)
    tally = exchanging()
    return tally._replace(cpu=_cpu_seconds(pids) - began)


def _cpu_seconds(pids: Iterable[int]) -> float:
    """The processor time of processes with all their threads."""
    return sum(time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED) for pid in pids)
