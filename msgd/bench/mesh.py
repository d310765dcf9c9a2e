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
from msgd.bench.peers.base import STARTING
from msgd.bench.results import Figure, Outcome, Result
from msgd.bench.runner import Parameters, Session, cases_of, interleave
from msgd.bench.workers import Team
from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

_PROCESSES = [10, 100]
_TEXT = b"testing"

_FIGURE = Figure("rate", "messages/s")

_DESCRIPTION = """\
Each of N processes sends one message to each of the others: N x (N - 1) messages, and as many first meetings.  The rate
is that of all together, from the first message to the last one heard, with everything that is set up for a first
message: connections, which stream keeps the last few of (msgd:connection cache), sockets, descriptors.
A run takes as long as that takes; --seconds has no meaning here.
"""

_EPILOG = """\
examples:
  msgbench mesh --processes 100           9,900 messages

Exit status: 0, 1 if one was lost or came twice, 2 for wrong usage.
"""


class _Report(NamedTuple):
    """When a process began and had heard everybody (seconds of one clock), and from how many it heard how much."""

    began: float
    ended: float
    heard_from: int
    heard: int


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=False)
    parser.add_argument(
        "--processes", type=numbers(2), default=_PROCESSES, metavar="N,...", help="how many (default: 10,100)"
    )


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    def run(team: Team, config: Config, parameters: Parameters) -> Outcome:
        return _meet(team, config, int(parameters["processes"]), session.patience)

    cases = cases_of(session, arguments.types, run, [{"processes": number} for number in arguments.processes])
    rows = interleave(session, "mesh", _FIGURE, cases)
    title = "mesh: messages a second, one from each process to each other"
    return Result("mesh", title, (_FIGURE,), rows, counts=("sent", "lost"))


def _meet(team: Team, config: Config, number: int, patience: float) -> Outcome:
    workers = [team.start(f"process {one}", _live, config, patience) for one in range(1, number + 1)]
    everybody: list[ServerID] = [worker.hear(STARTING) for worker in workers]
    for worker in workers:
        worker.tell(everybody)
    reports: list[_Report] = [worker.hear(STARTING + 2 * patience) for worker in workers]
    for worker in workers:
        worker.tell("end")
    for worker in workers:
        worker.hear(patience)
    sent, heard = number * (number - 1), sum(report.heard for report in reports)
    lost = sent - sum(report.heard_from for report in reports)
    counts = {"sent": sent, "received": heard, "lost": lost}
    if heard != sent or lost:
        return Outcome({}, counts, f"{sent} messages were sent, {heard} arrived, and {lost} of them never")
    seconds = max(report.ended for report in reports) - min(report.began for report in reports)
    return Outcome({_FIGURE.name: sent / seconds}, counts)


def _live(channel: Connection, config: Config, patience: float) -> None:
    heard: list[int] = []

    def take(message: Message) -> None:
        heard.append(message.src.pid)

    with Messaging(config) as messaging:
        messaging.register(DATA, take)
        channel.send(messaging.server_id)
        serve_until_told(messaging, channel)
        others = [one for one in channel.recv() if one != messaging.server_id]
        began = time.perf_counter()
        for one in others:
            messaging.send(one, DATA, _TEXT, timeout=patience)
            messaging.dispatch()
        dispatch_until(messaging, lambda: len(heard) >= len(others), patience)
        channel.send(_Report(began, time.perf_counter(), len(set(heard)), len(heard)))
        serve_until_told(messaging, channel)


COMMAND = Command("mesh", "everybody to everybody, once", _DESCRIPTION, _EPILOG, _add_options, _run, 1.0, 3)
