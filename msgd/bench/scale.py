# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench scale: measure how the rate and the memory use change with the number of processes."""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from msgd.bench.command import Command
from msgd.bench.endpoints import ACK, DATA, serve_until_told
from msgd.bench.exchange import Load, Tally, exchange
from msgd.bench.options import add_types, numbers
from msgd.bench.peers.base import START_TIMEOUT
from msgd.bench.results import Figure, Outcome, Result
from msgd.bench.runner import Parameters, Session, cases_of, interleave
from msgd.bench.workers import Team, end_all
from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

_PROCESSES = [2, 10, 50, 200]
_WINDOW = 4
_TEXT = b"testing"

_FIGURES = (Figure("rate", "messages/s"), Figure("memory", "KiB a process", less_is_better=True))

_DESCRIPTION = """\
Each of many processes sends to the others at random, with at most 4 unanswered
messages, and answers what it receives.  The rate is that of all messages and
answers together.  The memory is a process's proportional share (PSS) at the
end, so that memory shared with the parent is counted once.
"""

_EPILOG = """\
examples:
  msgbench scale --plot scale.png
  msgbench scale --processes 2,1000 --types dgram

Exit status: 0, 1 if an answer was missing, 2 for wrong usage.
"""


class _Report(NamedTuple):
    """A process's report: its exchange, and its memory in KiB."""

    tally: Tally
    memory: float


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=False)
    parser.add_argument(
        "--processes",
        type=numbers(2),
        default=_PROCESSES,
        metavar="N,...",
        help="numbers of processes (default: 2,10,50,200)",
    )


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    def run(team: Team, config: Config, parameters: Parameters) -> Outcome:
        return _measure(team, config, int(parameters["processes"]), session)

    cases = cases_of(session, arguments.types, run, [{"processes": number} for number in arguments.processes])
    rows = interleave(session, "scale", _FIGURES[0], cases)
    title = "scale: messages per second of all processes together, and memory of each"
    return Result("scale", title, _FIGURES, rows)


def _measure(team: Team, config: Config, number: int, session: Session) -> Outcome:
    load = Load(session.seconds, _WINDOW, (_TEXT,), session.patience)
    workers = [team.start(f"process {one}", _run_process, config, one, load) for one in range(number)]
    server_ids: list[ServerID] = [worker.receive(START_TIMEOUT) for worker in workers]
    for worker in workers:
        worker.send(server_ids)
    reports: list[_Report] = [worker.receive(session.seconds + 3 * session.patience) for worker in workers]
    end_all(workers, session.patience)
    counts = {
        "sent": sum(report.tally.sent for report in reports),
        "received": sum(report.tally.received for report in reports),
    }
    failures = [report.tally.failure for report in reports if report.tally.failure]
    if failures:
        return Outcome({}, counts, f"{len(failures)} of {number} processes: {failures[0]}")
    rate = sum((tally.sent + tally.received) / tally.seconds for tally, _ in reports)
    return Outcome({"rate": rate, "memory": sum(report.memory for report in reports) / number}, counts)


def _run_process(channel: Connection, config: Config, seed: int, load: Load) -> None:
    with Messaging(config) as messaging:
        messaging.register(DATA, lambda message: messaging.reply(message, ACK, message.data))
        channel.send(messaging.server_id)
        serve_until_told(messaging, channel)
        server_ids: list[ServerID] = channel.recv()
        others = [one for one in server_ids if one != messaging.server_id]
        channel.send(_Report(_exchange_with(messaging, others, random.Random(seed), load), _memory()))
        serve_until_told(messaging, channel)


def _exchange_with(messaging: Messaging, others: Sequence[ServerID], choice: random.Random, load: Load) -> Tally:
    answers = 0

    def count_answer(_: Message) -> None:
        nonlocal answers
        answers += 1

    def send(data: bytes) -> None:
        messaging.send(choice.choice(others), DATA, data, timeout=load.patience)

    def receive() -> int:
        """Dispatch until an answer arrives, since other messages arrive as well.  Return 0 if none arrives in time."""
        before = answers
        deadline = time.monotonic() + load.patience
        while answers == before and messaging.dispatch(load.patience) and time.monotonic() < deadline:
            pass
        return answers - before

    messaging.register(ACK, count_answer)
    return exchange(send, receive, load)


def _memory() -> float:
    """This process's proportional share of memory (PSS) in KiB."""
    match = re.search(r"^Pss:\s*(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return float(match[1]) if match else 0.0


COMMAND = Command("scale", "rate and memory by number of processes", _DESCRIPTION, _EPILOG, _add_options, _run, 1.0, 3)
