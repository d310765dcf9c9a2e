# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench fanout: measure a broadcast to many processes, beside other systems if asked."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from msgd.bench.broadcast.base import DELIVERIES, TIME, Broadcaster, BroadcastLoad
from msgd.bench.broadcast.msgd_types import Msgd
from msgd.bench.broadcast.table import BROADCAST_PEERS
from msgd.bench.command import Command, check_fits
from msgd.bench.exchange import CPU
from msgd.bench.options import add_types, numbers, size
from msgd.bench.results import Figure, Outcome, Result, Row
from msgd.bench.runner import Case, Session, interleave
from msgd.bench.workers import Team

_LISTENERS = [4, 16, 100]
_WINDOWS = [1, 16]
_SIZE = 7
_PEER_BASE = "pyzmq"

_FIGURES = (
    Figure(DELIVERIES, "messages/s"),
    Figure(TIME, "us a broadcast", less_is_better=True),
    Figure(CPU, "us a delivery", less_is_better=True),
)

_DESCRIPTION = """\
One process sends to all others, msgd's with send_all.  Each must have received
every broadcast at the end.

With a window of 1 the next broadcast waits until all listeners have answered,
and the time is that from a broadcast until its last answer.  With a window of
16 they answer every 16th broadcast, and none falls more than two rounds of 16
behind: the deliveries are those of bursts.

cpu is the CPU time of all processes together, and of a server between them,
for each message that a listener receives.
"""

_EPILOG = """\
examples:
  msgbench fanout --listeners 1,10,100
  msgbench fanout --peers           with pyzmq, Redis, NATS and a C program
  msgbench fanout --peers --windows 1 --types dgram

Exit status: 0, 1 if a listener missed one, 2 for wrong usage.
"""


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=False)
    parser.add_argument("--peers", action="store_true", help="also measure other ways to broadcast")
    parser.add_argument(
        "--listeners",
        type=numbers(1),
        default=_LISTENERS,
        metavar="N,...",
        help="numbers of listeners (default: 4,16,100)",
    )
    parser.add_argument(
        "--windows",
        type=numbers(1),
        default=_WINDOWS,
        metavar="N,...",
        help="how many broadcasts one answer is for (default: 1,16)",
    )
    parser.add_argument(
        "--size", type=size, default=_SIZE, metavar="BYTES", help="length of a message (default: %(default)s)"
    )


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    check_fits("--size", arguments.size, session.config)
    broadcasters: list[Broadcaster] = [Msgd(subject, session.config) for subject in arguments.types]
    base = broadcasters[0].name
    if arguments.peers:
        broadcasters += BROADCAST_PEERS
        base = _PEER_BASE
    cases = [
        _case(broadcaster, BroadcastLoad(listeners, window, bytes(arguments.size), session.seconds, session.patience))
        for window, listeners, broadcaster in itertools.product(arguments.windows, arguments.listeners, broadcasters)
    ]
    rows = interleave(session, "fanout", _FIGURES[0], cases)
    title = f"fanout: {arguments.size}-byte messages, each to all listeners"
    return Result("fanout", title, _FIGURES, rows, {"size": arguments.size}, base, ("lost",), (TIME,))


def _case(broadcaster: Broadcaster, load: BroadcastLoad) -> Case:
    def run(team: Team, directory: Path) -> Outcome:
        return broadcaster.run(team, directory, load)

    parameters = {"listeners": load.listeners, "window": load.window}
    return Case(Row(broadcaster.name, parameters, note=broadcaster.note, missing=broadcaster.missing()), run)


COMMAND = Command("fanout", "broadcasts to many processes", _DESCRIPTION, _EPILOG, _add_options, _run)
