# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench latency: measure the round-trip time of a single ping."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

from msgd.bench.command import Command, check_fits
from msgd.bench.endpoints import answer_pings
from msgd.bench.options import add_types, size
from msgd.bench.peers.base import START_TIMEOUT
from msgd.bench.results import Figure, Outcome, Result
from msgd.bench.runner import Session, cases_of, interleave
from msgd.bench.workers import Team
from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.message_types import MessageType
from msgd.wire.server_id import ServerID

_SIZE = 7
_QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
_FIGURES = tuple(Figure(name, "us", less_is_better=True) for name in _QUANTILES)

_DESCRIPTION = """\
One ping at a time: the microseconds from before it is sent until its pong has
been handled.  99 of 100 pings take at most p99.
"""

_EPILOG = """\
examples:
  msgbench latency --pin 0,1              each process on its own CPU
  msgbench latency --seconds 30 --runs 1  find rare delays

Exit status: 0, 1 if a message was missing, 2 for wrong usage.
"""


class _Times(NamedTuple):
    """How many pings were sent, and the round-trip time of each that was answered."""

    sent: int
    seconds: list[float]


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=True)
    parser.add_argument(
        "--size", type=size, default=_SIZE, metavar="BYTES", help="length of a ping (default: %(default)s)"
    )


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    check_fits("--size", arguments.size, session.config)
    data = bytes(arguments.size)
    cases = cases_of(session, arguments.types, lambda team, config, parameters: _measure(team, config, data, session))
    rows = interleave(session, "latency", _FIGURES[0], cases)
    title = f"latency: microseconds for a {arguments.size}-byte ping and its pong"
    return Result("latency", title, _FIGURES, rows, {"size": arguments.size}, counts=("pings",))


def _measure(team: Team, config: Config, data: bytes, session: Session) -> Outcome:
    server = team.start("the ponging process", answer_pings, config)
    dst: ServerID = server.receive(START_TIMEOUT)
    client = team.start("the pinging process", _ping, config, dst, data, session.seconds, session.patience)
    times: _Times = client.receive(session.seconds + 2 * session.patience)
    if len(times.seconds) != times.sent:
        return Outcome({}, {"pings": times.sent}, f"ping {times.sent} has no pong")
    return Outcome(quantiles(times.seconds), {"pings": times.sent})


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the quantiles in microseconds.  Each is a measured time: the least that this share does not exceed."""
    ordered = sorted(seconds)
    return {name: 1e6 * ordered[math.ceil(share * len(ordered)) - 1] for name, share in _QUANTILES.items()}


def _ping(_: Connection, config: Config, dst: ServerID, data: bytes, seconds: float, patience: float) -> _Times:
    clock = time.perf_counter
    times: list[float] = []
    sent = 0
    with Messaging(config) as messaging:
        messaging.register(MessageType.PONG, lambda pong: None)
        now = clock()
        end = now + seconds
        while now < end:
            began = clock()
            messaging.send(dst, MessageType.PING, data, timeout=patience)
            sent += 1
            if not messaging.dispatch(patience):
                break
            now = clock()
            times.append(now - began)
    return _Times(sent, times)


COMMAND = Command(
    "latency", "how long one ping takes: p50, p99, p99.9, maximum", _DESCRIPTION, _EPILOG, _add_options, _run
)
