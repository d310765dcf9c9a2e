# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench torture: test messaging under heavy load while processes are killed, replaced and stopped.

Many processes send each other messages of random sizes at random.  Each message carries a checksum and the sequence
number of its sender and receiver pair.  Meanwhile the parent kills processes with SIGKILL, starts others in their
place, and stops some for a while so that they do not read.  At the end the survivors send each other a last message,
and the counts of every pair are compared: each accepted message must have arrived once, in order and undamaged.

The counters are in memory that all processes share, so the counts of killed processes are not lost.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import time
from collections import Counter

from msgd.bench import qlen
from msgd.bench.command import Command, check_fits
from msgd.bench.options import add_types, at_least, size
from msgd.bench.peers.base import START_TIMEOUT
from msgd.bench.results import Figure, Outcome, Result
from msgd.bench.runner import Parameters, Session, cases_of, interleave
from msgd.bench.torture_process import HEADER, Counters, Report, Setup, run_process
from msgd.bench.workers import Team, Worker, end_all
from msgd.config import Config
from msgd.wire.server_id import ServerID

_PROCESSES = 8
_MAX_SIZE = 256 << 10
_QUEUE_MESSAGES = 200
"""A short queue, so that the senders to a stopped process reach its limit."""

_INCIDENT_PAUSE = (0.02, 0.15)
"""Seconds between two incidents: the bounds of a random time."""


_NOISE = 1 << 20
"""Bytes of random data, of which each message holds a part."""

_FIGURE = Figure("delivered", "messages/s")
_ERROR_COUNTS = ("lost", "doubled", "reordered", "damaged")
_COUNTS = ("sent", "delivered", "refused", "unread", "kills", "stops", *_ERROR_COUNTS)

_DESCRIPTION = """\
Processes send messages of 0 bytes to 256 KiB to each other at random, as fast
as they can, with sequence numbers and checksums.  Meanwhile processes are
killed (SIGKILL) and replaced, or stopped for a while so that their queues fill.
At the end each pair of surviving processes is compared: no message may be lost,
doubled, reordered or damaged.

  sent       messages that send() accepted
  delivered  messages that arrived
  refused    messages that send() refused: the receiver is dead
             (NoSuchProcess) or does not read (QueueFull)
  unread     sent minus delivered: what killed processes had not read, and what
             was still in their backlogs
"""

_EPILOG = """\
examples:
  msgbench torture --seconds 60 --processes 20
  msgbench torture --seed 42
                           repeat the sizes and incidents of a run
  msgbench torture --types dgram --qlen 1
                           with net.unix.max_dgram_qlen = 1 (needs root)

Exit status: 0, 1 if a message between surviving processes was lost, doubled,
reordered or damaged, 2 for wrong usage.
"""


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=True)
    parser.add_argument(
        "--processes",
        type=at_least(3),
        default=_PROCESSES,
        metavar="N",
        help="number of processes (default: %(default)s)",
    )
    parser.add_argument(
        "--max-size",
        type=size,
        default=_MAX_SIZE,
        metavar="BYTES",
        help="length of the longest message (default: 256K)",
    )
    parser.add_argument(
        "--seed", type=at_least(0), metavar="N", help="repeat the random choices of the run with this seed"
    )
    parser.add_argument(
        "--qlen",
        type=at_least(1),
        metavar="N",
        help="set net.unix.max_dgram_qlen for the run, then restore it (needs root)",
    )


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    check_fits("--max-size", arguments.max_size + HEADER.size, session.config)
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    session = session._replace(
        config=session.config.replace(send_queue_messages=min(_QUEUE_MESSAGES, session.config.send_queue_messages))
    )

    def run(team: Team, config: Config, parameters: Parameters) -> Outcome:
        return _Torture(team, config, arguments.processes, arguments.max_size, seed, session).run()

    cases = cases_of(session, arguments.types, run)
    with qlen.changed(arguments.qlen) as in_force:
        rows = interleave(session, "torture", _FIGURE, cases)
    title = (
        f"torture: {arguments.processes} processes, 0 to {arguments.max_size} bytes, seed {seed},"
        f" net.unix.max_dgram_qlen {in_force}"
    )
    settings = {
        "processes": arguments.processes,
        "max size": arguments.max_size,
        "seed": seed,
        "net.unix.max_dgram_qlen": in_force,
    }
    return Result("torture", title, (_FIGURE,), rows, settings, counts=_COUNTS)


class _Torture:
    """One run, controlled by the parent."""

    def __init__(self, team: Team, config: Config, processes: int, max_size: int, seed: int, session: Session) -> None:
        self._team = team
        self._config = config
        self._processes = processes
        self._max_size = max_size
        self._seed = seed
        self._session = session
        self._rng = random.Random(seed)
        self._noise = self._rng.randbytes(max(_NOISE, 2 * max_size))
        self._alive: dict[ServerID, Worker] = {}
        self._stopped: Worker | None = None
        self._counters: list[Counters] = []
        self._counts: Counter[str] = Counter()

    def run(self) -> Outcome:
        """Cause incidents for the session's time, let the survivors receive what is in flight, and compare."""
        for _ in range(self._processes):
            self._start()
        self._send_server_ids()
        began = time.monotonic()
        end = began + self._session.seconds
        while (now := time.monotonic()) < end:
            self._team.watch(min(self._rng.uniform(*_INCIDENT_PAUSE), end - now))
            self._incident()
        self._resume()
        reports = self._settle()
        elapsed = time.monotonic() - began
        self._compare(reports)
        for name, which in (("sent", Counters.SENT), ("delivered", Counters.DELIVERED)):
            self._counts[name] = sum(one.values[which] for one in self._counters)
        self._counts["refused"] = sum(
            one.values[which] for one in self._counters for which in (Counters.NO_SUCH_PROCESS, Counters.QUEUE_FULL)
        )
        self._counts["unread"] = self._counts["sent"] - self._counts["delivered"]
        counts = {name: self._counts[name] for name in _COUNTS}
        wrong = [f"{counts[name]} {name}" for name in _ERROR_COUNTS if counts[name]]
        if wrong:
            return Outcome({}, counts, f"of {counts['sent']} messages {', '.join(wrong)} (seed {self._seed})")
        return Outcome({_FIGURE.name: counts["delivered"] / elapsed}, counts)

    def _start(self) -> Worker:
        number = len(self._counters)
        counters = Counters()
        self._counters.append(counters)
        rng = random.Random(f"{self._seed}/{number}")
        setup = Setup(self._noise, self._max_size, rng, counters, self._session.patience)
        worker = self._team.start(f"process {number}", run_process, self._config, setup)
        self._alive[worker.receive(START_TIMEOUT)] = worker
        return worker

    def _send_server_ids(self) -> None:
        server_ids = list(self._alive)
        for worker in self._alive.values():
            worker.send(server_ids)

    def _incident(self) -> None:
        """Stop a process, resume the stopped one, or kill one (it may be the stopped one) and start another."""
        if self._stopped is not None and self._rng.random() < 0.5:
            self._resume()
        elif self._stopped is None and self._rng.random() < 0.5:
            self._stopped = self._alive[self._rng.choice(list(self._alive))]
            os.kill(self._stopped.pid, signal.SIGSTOP)
            self._counts["stops"] += 1
        else:
            worker = self._alive.pop(self._rng.choice(list(self._alive)))
            worker.kill()
            self._counts["kills"] += 1
            if worker is self._stopped:
                self._stopped = None
            self._resume()  # the stopped process may hold a lock that the new one waits for
            self._start()
            self._send_server_ids()

    def _resume(self) -> None:
        if self._stopped is not None:
            os.kill(self._stopped.pid, signal.SIGCONT)
            self._stopped = None

    def _settle(self) -> dict[int, Report]:
        """Tell the survivors to stop sending and to await each other's last messages; return their reports by pid."""
        for worker in self._alive.values():
            worker.send(None)
        patience = 3 * self._session.patience
        reports: dict[int, Report] = {worker.pid: worker.receive(patience) for worker in self._alive.values()}
        end_all(self._alive.values(), patience)
        return reports

    def _compare(self, reports: dict[int, Report]) -> None:
        """Count the errors between each two survivors.  A missing last message counts as lost."""
        for pid, report in reports.items():
            for name, number in report.errors.items():
                self._counts[name] += number
            for sender in reports.keys() - {pid}:
                self._counts["lost"] += reports[sender].sent.get(pid, 0) - report.received.get(sender, 0)
                self._counts["lost"] += sender not in report.finished


COMMAND = Command(
    "torture",
    "stress test with kills, stops and random sizes",
    _DESCRIPTION,
    _EPILOG,
    _add_options,
    _run,
    5.0,
    1,
)
