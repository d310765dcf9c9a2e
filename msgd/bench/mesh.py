# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench mesh: every process sends to every other once, which measures the cost of a first contact."""

from __future__ import annotations

import argparse
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

from msgd.bench.command import Command
from msgd.bench.endpoints import DATA, dispatch_until, serve_until_told
from msgd.bench.options import add_types, numbers
from msgd.bench.peers.base import START_TIMEOUT
from msgd.bench.results import Figure, Outcome, Result
from msgd.bench.runner import Parameters, Session, cases_of, interleave
from msgd.bench.workers import Team, end_all
from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

_PROCESSES = [10, 100]
_TEXT = b"testing"

_FIGURE = Figure("rate", "messages/s")

_DESCRIPTION = """\
Each of N processes sends one message to each of the others: N x (N - 1)
messages, and as many first contacts.  The rate is that of all processes
together, from the first message sent to the last one received.  It includes
what a first contact sets up: sockets, descriptors and connections.

A run takes as long as this takes; --seconds has no effect.
"""

_EPILOG = """\
examples:
  msgbench mesh --processes 100           9,900 messages

Exit status: 0, 1 if a message was lost or duplicated, 2 for wrong usage.
"""


class _Report(NamedTuple):
    """A process's report: when it began and ended, in seconds of one clock, and how much it received from how many."""

    began: float
    ended: float
    senders: int
    received: int


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=False)
    parser.add_argument(
        "--processes",
        type=numbers(2),
        default=_PROCESSES,
        metavar="N,...",
        help="numbers of processes (default: 10,100)",
    )


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    def run(team: Team, config: Config, parameters: Parameters) -> Outcome:
        return _measure(team, config, int(parameters["processes"]), session.patience)

    cases = cases_of(session, arguments.types, run, [{"processes": number} for number in arguments.processes])
    rows = interleave(session, "mesh", _FIGURE, cases)
    title = "mesh: messages per second, one from each process to each other"
    return Result("mesh", title, (_FIGURE,), rows, counts=("sent", "lost"))


def _measure(team: Team, config: Config, number: int, patience: float) -> Outcome:
    workers = [team.start(f"process {one}", _run_process, config, patience) for one in range(1, number + 1)]
    server_ids: list[ServerID] = [worker.receive(START_TIMEOUT) for worker in workers]
    for worker in workers:
        worker.send(server_ids)
    reports: list[_Report] = [worker.receive(START_TIMEOUT + 2 * patience) for worker in workers]
    end_all(workers, patience)
    sent, received = number * (number - 1), sum(report.received for report in reports)
    lost = sent - sum(report.senders for report in reports)
    counts = {"sent": sent, "received": received, "lost": lost}
    if received != sent or lost:
        return Outcome({}, counts, f"{sent} messages were sent and {received} arrived; {lost} are missing")
    seconds = max(report.ended for report in reports) - min(report.began for report in reports)
    return Outcome({_FIGURE.name: sent / seconds}, counts)


def _run_process(channel: Connection, config: Config, patience: float) -> None:
    received: list[int] = []

    def take(message: Message) -> None:
        received.append(message.src.pid)

    with Messaging(config) as messaging:
        messaging.register(DATA, take)
        channel.send(messaging.server_id)
        serve_until_told(messaging, channel)
        others = [one for one in channel.recv() if one != messaging.server_id]
        began = time.perf_counter()
        for one in others:
            messaging.send(one, DATA, _TEXT, timeout=patience)
            messaging.dispatch()
        dispatch_until(messaging, lambda: len(received) >= len(others), patience)
        channel.send(_Report(began, time.perf_counter(), len(set(received)), len(received)))
        serve_until_told(messaging, channel)


COMMAND = Command("mesh", "every process to every other, once", _DESCRIPTION, _EPILOG, _add_options, _run, 1.0, 3)
