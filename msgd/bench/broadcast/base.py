# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The interface of a broadcaster, the loop that measures it, and the processes that take part.

Rule 1. Every broadcaster runs the same loop: rounds of `window` broadcasts, and each listener answers the last one of a
        round.
Rule 2. With a window of 1 the next broadcast waits for all answers.  With a longer one a round waits for the answers to
        the round before it, so that no listener is more than two rounds behind.
Rule 3. Nothing may be lost.  At the end each listener reports what it has received, and one missing broadcast fails the
        run.
"""

from __future__ import annotations

import abc
import contextlib
import importlib
import importlib.util
import time
from array import array
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar, NamedTuple

from msgd.bench.exchange import CPU, cpu_seconds, quantiles
from msgd.bench.peers.base import START_TIMEOUT
from msgd.bench.results import Outcome
from msgd.bench.workers import Team, Worker

DELIVERIES, TIME, MEDIAN, SLOWEST = "deliveries", "time", "p50", "p99"

END = b"end"
"""The last message of a peer's sender.  The others consist of zero bytes."""

Step = Callable[[int, int], bool]
"""step(number, wanted): broadcast `number` times, then wait until `wanted` answers have arrived since the start.

It returns False if they do not arrive in time.
"""


class BroadcastLoad(NamedTuple):
    """What to broadcast: `data`, for `seconds`, to so many listeners, in rounds of `window`.

    If no answer arrives for `patience` seconds, a message is taken to be lost.
    """

    listeners: int
    window: int
    data: bytes
    seconds: float
    patience: float


class Sent(NamedTuple):
    """The sender's report: broadcasts, and the seconds until the last answer.

    `cpu` is the CPU time of all processes that took part, in seconds.  `failure` is empty if nothing went wrong.
    """

    broadcasts: int
    seconds: float
    cpu: float
    failure: str = ""
    rounds: Sequence[float] = ()
    """The seconds of each round, with a window of 1: from the broadcast until its last answer."""

    def outcome(self, load: BroadcastLoad, received: int) -> Outcome:
        """Return deliveries a second, and microseconds for a broadcast and of CPU time for a delivery.

        `received` is the number of broadcasts that all listeners together have received.
        """
        deliveries = self.broadcasts * load.listeners
        lost = deliveries - received
        counts = {"broadcasts": self.broadcasts, "received": received, "lost": lost}
        if self.failure or lost:
            return Outcome({}, counts, self.failure or f"{lost} of {deliveries} deliveries are missing")
        rates = {DELIVERIES: deliveries / self.seconds, TIME: 1e6 * self.seconds / self.broadcasts}
        if self.rounds:
            found = quantiles(self.rounds)
            rates |= {MEDIAN: found[MEDIAN], SLOWEST: found[SLOWEST]}
        return Outcome(rates | {CPU: 1e6 * self.cpu / deliveries}, counts)


def broadcast_rounds(step: Step, load: BroadcastLoad, others: Sequence[int]) -> Sent:
    """Broadcast for the load's time, then wait for the last answer.  `others` are the pids of the other processes."""
    clock = time.perf_counter
    rounds_ahead = 0 if load.window == 1 else 1
    cpu = -cpu_seconds(others)
    rounds = 0
    times = array("d")
    complete = True
    began = now = clock()
    while complete and now < began + load.seconds:
        rounds += 1
        before = now
        complete = step(load.window, load.listeners * (rounds - rounds_ahead))
        now = clock()
        times.append(now - before)
    complete = complete and step(0, load.listeners * rounds)
    elapsed = clock() - began
    failure = "" if complete else f"a listener did not answer within {load.patience:.3g} s"
    measured = () if rounds_ahead else times
    return Sent(rounds * load.window, elapsed, cpu + cpu_seconds(others), failure, measured)


class Broadcaster(abc.ABC):
    """One way to broadcast.  `name` and `note` are shown in its row of the table."""

    name: str
    note: str = ""

    @abc.abstractmethod
    def missing(self) -> str:
        """Return the reason why it cannot be measured on this machine; an empty string if it can."""

    @abc.abstractmethod
    def run(self, team: Team, directory: Path, load: BroadcastLoad) -> Outcome:
        """Measure one run with processes of `team`.  `directory` is empty and belongs to this run."""


class PythonBroadcaster(Broadcaster):
    """A broadcaster whose sender and listeners are Python processes."""

    module: ClassVar[str]
    """The module that it needs.  It is imported once, before the listeners are forked."""

    package: ClassVar[str] = ""
    """The package to install for it."""

    def missing(self) -> str:
        if importlib.util.find_spec(self.module) is None:
            return f"{self.package} is not installed (pip install {self.package})"
        return ""

    def run(self, team: Team, directory: Path, load: BroadcastLoad) -> Outcome:
        with self.server(directory) as servers:
            crowd = team.start("the listeners", self._crowd, team.cpus, directory, load)
            pids: list[int] = crowd.receive(2 * START_TIMEOUT)
            sender = team.start("the sender", self._send, directory, load, [*pids, *servers])
            sent: Sent = sender.receive(START_TIMEOUT + load.seconds + 4 * load.patience)
            crowd.send("end")
            received: int = crowd.receive(2 * load.patience)
        return sent.outcome(load, received)

    def server(self, directory: Path) -> contextlib.AbstractContextManager[Sequence[int]]:
        """Start what stands between the processes and return its pids; it ends with the context."""
        return contextlib.nullcontext(())

    def _crowd(self, channel: Connection, cpus: Sequence[int], directory: Path, load: BroadcastLoad) -> int:
        """Start the listeners, report their pids, and return what they have received once told to."""
        importlib.import_module(self.module)
        with Team(cpus) as team:
            listeners = [
                team.start(f"listener {number}", self._listen, directory, load)
                for number in range(1, load.listeners + 1)
            ]
            for listener in listeners:
                listener.receive(START_TIMEOUT)
            channel.send([listener.pid for listener in listeners])
            channel.recv()
            return sum(_count_of(listener, load.patience) for listener in listeners)

    def _listen(self, channel: Connection, directory: Path, load: BroadcastLoad) -> int:
        return self.listen(directory, load, lambda: channel.send("ready"))

    def _send(self, _: Connection, directory: Path, load: BroadcastLoad, others: Sequence[int]) -> Sent:
        importlib.import_module(self.module)
        return self.send(directory, load, lambda step: broadcast_rounds(step, load, others))

    @abc.abstractmethod
    def listen(self, directory: Path, load: BroadcastLoad, ready: Callable[[], None]) -> int:
        """Call `ready` once broadcasts can arrive, and answer the last of each round.

        Return how many have arrived when the sender says that this was the end.
        """

    @abc.abstractmethod
    def send(self, directory: Path, load: BroadcastLoad, measure: Callable[[Step], Sent]) -> Sent:
        """Connect, call `measure` with the step, and then tell all listeners that this was the end."""


def _count_of(listener: Worker, patience: float) -> int:
    count: int = listener.receive(patience)
    return count
