# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The loop of LOCAL-MESSAGING: send bursts, receive answers, and keep at most one window in flight."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

from msgd.bench.results import Outcome

RATE = "rate"
CPU = "cpu"

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
"""The figures of a timed exchange: the share of the round trips that took at most this long."""

_CPUCLOCK_SCHED = 2
"""Combined with a pid, this is the clock id of the process's CPU time, as clock_getcpuclockid(3) returns it."""


class Load(NamedTuple):
    """What to send: `messages`, repeated for `seconds`, with at most `window` of them unanswered.

    If no answer arrives for `patience` seconds, a message is taken to be lost.  If it is `timed`, the window is 1, and
    each round trip is measured.
    """

    seconds: float
    window: int
    messages: tuple[bytes, ...]
    patience: float
    timed: bool = False

    @property
    def bursts(self) -> tuple[tuple[bytes, ...], ...]:
        """The messages grouped as they are sent: all at once, or one by one if the window is too small for that."""
        return (self.messages,) if len(self.messages) <= self.window else tuple((data,) for data in self.messages)


class Tally(NamedTuple):
    """The result: messages sent, answers received, and the seconds from the first message to the last answer.

    `cpu` is the CPU time of all processes that took part, in seconds; None if it was not measured.  `times` has the
    seconds of each round trip of a timed load.
    """

    sent: int
    received: int
    seconds: float
    cpu: float | None = None
    times: Sequence[float] = ()

    @property
    def failure(self) -> str:
        """What went wrong; empty if every message was answered once."""
        if self.received < self.sent:
            return f"{self.sent - self.received} of {self.sent} answers are missing"
        return f"there are {self.received - self.sent} answers too many" if self.received > self.sent else ""

    def outcome(self) -> Outcome:
        """Return the rate in messages and answers per second, and the CPU time for each of them in microseconds.

        A timed exchange has the quantiles of its round trips as well.
        """
        number = self.sent + self.received
        figures = {RATE: number / self.seconds}
        if self.cpu is not None:
            figures[CPU] = 1e6 * self.cpu / number
        return self.outcome_of(figures | (quantiles(self.times) if self.times else {}))

    def outcome_of(self, figures: Mapping[str, float]) -> Outcome:
        """Return these figures as an outcome, or the failure without the figures if something went wrong."""
        failure = self.failure
        return Outcome({} if failure else figures, {"sent": self.sent, "received": self.received}, failure)


def exchange(send: Callable[[bytes], object], receive: Callable[[], int], load: Load) -> Tally:
    """Send for the load's time, then wait for the last answer.

    `receive` waits for at least one answer and returns how many arrived; it returns 0 if none arrived in time.
    """
    if load.timed:
        return _exchange_timed(send, receive, load)
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


def _exchange_timed(send: Callable[[bytes], object], receive: Callable[[], int], load: Load) -> Tally:
    clock = time.perf_counter
    data = load.messages[0]
    times: list[float] = []
    sent = 0
    first = now = clock()
    end = first + load.seconds
    while now < end:
        began = clock()
        send(data)
        sent += 1
        if not receive():
            break
        now = clock()
        times.append(now - began)
    return Tally(sent, len(times), clock() - first, times=times)


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the quantiles in microseconds.  Each is a measured time: the least that this share does not exceed."""
    ordered = sorted(seconds)
    return {name: 1e6 * ordered[math.ceil(share * len(ordered)) - 1] for name, share in QUANTILES.items()}


def with_cpu(exchanging: Callable[[], Tally], others: Sequence[int]) -> Tally:
    """Call `exchanging`, and measure the CPU time that this process and the others (by pid) use meanwhile.

    On a busy machine the CPU time says more about the cost of a message than the rate does.
    """
    began = cpu_seconds(others)
    tally = exchanging()
    return tally._replace(cpu=cpu_seconds(others) - began)


def cpu_seconds(others: Iterable[int]) -> float:
    """The CPU time of this process and the others (by pid), all their threads included."""
    return sum(time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED) for pid in (os.getpid(), *others))
