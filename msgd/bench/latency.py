# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench latency: measure the round-trip time of a single ping, beside other systems if asked."""

from __future__ import annotations

import argparse
from multiprocessing.connection import Connection
from pathlib import Path

from msgd.bench.command import Command, check_fits
from msgd.bench.endpoints import answer_pings
from msgd.bench.exchange import CPU, QUANTILES, Load, Tally, exchange, with_cpu
from msgd.bench.options import add_types, size
from msgd.bench.peers.base import START_TIMEOUT, Peer
from msgd.bench.peers.table import TIMED_PEERS
from msgd.bench.results import Figure, Outcome, Result, Row
from msgd.bench.runner import Case, Session, cases_of, interleave
from msgd.bench.workers import Team
from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.message_types import MessageType
from msgd.wire.server_id import ServerID

_SIZE = 7
_FIGURES = (
    *(Figure(name, "us", less_is_better=True) for name in QUANTILES),
    Figure(CPU, "us a message", less_is_better=True),
)
_PEER_BASE = "pyzmq"

_DESCRIPTION = """\
One ping at a time: the microseconds from before it is sent until its pong has
been handled.  99 of 100 pings take at most p99.

cpu is the CPU time of all processes together for each ping or pong.
"""

_EPILOG = """\
examples:
  msgbench latency --pin 0,1              each process on its own CPU
  msgbench latency --seconds 30 --runs 1  find rare delays
  msgbench latency --peers                and other ways to exchange messages

Exit status: 0, 1 if a message was missing, 2 for wrong usage.
"""


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=True)
    parser.add_argument("--peers", action="store_true", help="also measure other ways to exchange messages")
    parser.add_argument(
        "--size", type=size, default=_SIZE, metavar="BYTES", help="length of a ping (default: %(default)s)"
    )


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    check_fits("--size", arguments.size, session.config)
    load = Load(session.seconds, 1, (bytes(arguments.size),), session.patience, timed=True)
    cases = cases_of(session, arguments.types, lambda team, config, parameters: _measure(team, config, load))
    base = arguments.types[0].name
    if arguments.peers:
        cases += [_peer_case(peer, load) for peer in TIMED_PEERS]
        base = _PEER_BASE
    rows = interleave(session, "latency", _FIGURES[0], cases)
    title = f"latency: microseconds for a {arguments.size}-byte ping and its pong"
    settings = {"size": arguments.size}
    return Result("latency", title, _FIGURES, rows, settings, base, counts=("sent",), compared=("p99",))


def _peer_case(peer: Peer, load: Load) -> Case:
    def run(team: Team, directory: Path) -> Outcome:
        return peer.run(team, directory, load)

    return Case(Row(peer.name, note=peer.note, missing=peer.missing()), run)


def _measure(team: Team, config: Config, load: Load) -> Outcome:
    server = team.start("the ponging process", answer_pings, config)
    dst: ServerID = server.receive(START_TIMEOUT)
    client = team.start("the pinging process", _ping, config, dst, load)
    tally: Tally = client.receive(load.seconds + 2 * load.patience)
    return tally.outcome()


def _ping(_: Connection, config: Config, dst: ServerID, load: Load) -> Tally:
    def send(data: bytes) -> None:
        messaging.send(dst, MessageType.PING, data, timeout=load.patience)

    with Messaging(config) as messaging:
        messaging.register(MessageType.PONG, lambda pong: None)
        return with_cpu(lambda: exchange(send, lambda: messaging.dispatch(load.patience), load), (dst.pid,))


COMMAND = Command(
    "latency", "how long one ping takes: p50, p99, p99.9, maximum", _DESCRIPTION, _EPILOG, _add_options, _run
)
