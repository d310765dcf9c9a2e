# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench pubsub: measure topics with acknowledgements, beside Redis, ZeroMQ and NATS if asked."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from msgd.bench.broadcast.base import DELIVERIES, MEDIAN, SLOWEST, TIME, Broadcaster, BroadcastLoad
from msgd.bench.broadcast.msgd_topics import MsgdTopics
from msgd.bench.broadcast.table import PUBSUB_PEERS
from msgd.bench.command import Command, check_fits
from msgd.bench.exchange import CPU
from msgd.bench.options import add_types, numbers, size
from msgd.bench.results import Figure, Outcome, Result, Row
from msgd.bench.runner import Case, Session, interleave
from msgd.bench.workers import Team

_WORKERS = [4, 16, 100]
_WINDOWS = [1, 16]
_SIZE = 7
_PEER_BASE = "redis"

_FIGURES = (
    Figure(DELIVERIES, "messages/s"),
    Figure(TIME, "us until all have handled it", less_is_better=True),
    Figure(MEDIAN, "us", less_is_better=True),
    Figure(SLOWEST, "us", less_is_better=True),
    Figure(CPU, "us a delivery", less_is_better=True),
)

_DESCRIPTION = """\
One worker publishes to all others and knows when each has handled it: with
msgd by wait="acked", with the others by an answer of each worker.  Each must
have received every publication at the end.

With a window of 1 each publication waits for all answers; p50 and p99 are the
times until the last one.  With a window of 16 the workers answer every 16th.
msgd then waits for the answers to each burst, the others for those to the burst
before it.

cpu is the CPU time of all processes together, and of a server between them,
for each publication that a worker handles.
"""

_EPILOG = """\
examples:
  msgbench pubsub --workers 4,16
  msgbench pubsub --peers           with pyzmq, Redis and NATS
  msgbench pubsub --peers --windows 1 --types dgram

Exit status: 0, 1 if a worker missed one, 2 for wrong usage.
"""


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=False)
    parser.add_argument("--peers", action="store_true", help="also measure other ways to publish")
    parser.add_argument(
        "--workers",
        type=numbers(1),
        default=_WORKERS,
        metavar="N,...",
        help="numbers of workers (default: 4,16,100)",
    )
    parser.add_argument(
        "--windows",
        type=numbers(1),
        default=_WINDOWS,
        metavar="N,...",
        help="how many publications one answer is for (default: 1,16)",
    )
    parser.add_argument(
        "--size", type=size, default=_SIZE, metavar="BYTES", help="length of a publication (default: %(default)s)"
    )


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    check_fits("--size", arguments.size, session.config)
    broadcasters: list[Broadcaster] = [MsgdTopics(subject, session.config) for subject in arguments.types]
    base = broadcasters[0].name
    if arguments.peers:
        broadcasters += PUBSUB_PEERS
        base = _PEER_BASE
    cases = [
        _case(broadcaster, BroadcastLoad(workers, window, bytes(arguments.size), session.seconds, session.patience))
        for window, workers, broadcaster in itertools.product(arguments.windows, arguments.workers, broadcasters)
    ]
    rows = interleave(session, "pubsub", _FIGURES[0], cases)
    title = f"pubsub: {arguments.size}-byte publications, each to all workers"
    return Result("pubsub", title, _FIGURES, rows, {"size": arguments.size}, base, ("lost",), (TIME,))


def _case(broadcaster: Broadcaster, load: BroadcastLoad) -> Case:
    def run(team: Team, directory: Path) -> Outcome:
        return broadcaster.run(team, directory, load)

    parameters = {"workers": load.listeners, "window": load.window}
    return Case(Row(broadcaster.name, parameters, note=broadcaster.note, missing=broadcaster.missing()), run)


COMMAND = Command("pubsub", "topics with acknowledgements", _DESCRIPTION, _EPILOG, _add_options, _run)
