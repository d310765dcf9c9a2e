# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench size: measure the throughput in MiB per second, from empty messages to the longest."""

from __future__ import annotations

import argparse
from multiprocessing.connection import Connection
from pathlib import Path

from msgd.bench.command import Command, check_fits
from msgd.bench.endpoints import ACK, DATA
from msgd.bench.exchange import Load, Tally, exchange
from msgd.bench.options import add_types, sizes
from msgd.bench.peers.base import START_TIMEOUT, PythonPeer
from msgd.bench.peers.multiprocessing_connection import MultiprocessingConnection
from msgd.bench.peers.zeromq import ZeroMq
from msgd.bench.results import Figure, Outcome, Result, Row
from msgd.bench.runner import Case, Parameters, Session, cases_of, interleave
from msgd.bench.workers import Team
from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

_SIZES = "0,64,1K,4K,16K,64K,256K,1M,4M,16M"
_WINDOW = 20
_WINDOW_BYTES = 16 << 20
"""At most this many bytes are unacknowledged, unless a single message is longer."""

_MIB = 1 << 20


class _AcknowledgingZeroMq(ZeroMq):
    """Answers each message with an empty one."""

    def answer(self, data: bytes) -> bytes:
        return b""


class _AcknowledgingConnection(MultiprocessingConnection):
    """Answers each message with an empty one."""

    def answer(self, data: bytes) -> bytes:
        return b""


_PEERS: tuple[PythonPeer, ...] = (_AcknowledgingZeroMq(), _AcknowledgingConnection())

_FIGURES = (Figure("throughput", "MiB/s"), Figure("rate", "messages/s"))

_DESCRIPTION = """\
One process sends messages of one size; another acknowledges each with an empty
message.  At most 20 messages and 16 MiB are unacknowledged.  The throughput is
that of the messages, one way.
"""

_EPILOG = """\
examples:
  msgbench size --plot size.png
  msgbench size --peers --sizes 1M    with pyzmq, multiprocessing.connection
  msgbench size --sizes 1K,64K,1M --types dgram

Exit status: 0, 1 if a message was lost or truncated, 2 for wrong usage.
"""


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=False)
    parser.add_argument("--peers", action="store_true", help="also measure other ways to exchange messages")
    parser.add_argument(
        "--sizes",
        type=sizes,
        default=sizes(_SIZES),
        metavar="BYTES,...",
        help=f"sizes of the messages (default: {_SIZES})",
    )


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    check_fits("--sizes", max(arguments.sizes), session.config)

    def run(team: Team, config: Config, parameters: Parameters) -> Outcome:
        return _transfer(team, config, int(parameters["bytes"]), session)

    cases = cases_of(session, arguments.types, run, [{"bytes": length} for length in arguments.sizes])
    if arguments.peers:
        cases += [_peer_case(peer, length, session) for length in arguments.sizes for peer in _PEERS]
        cases.sort(key=lambda case: int(case.row.parameters["bytes"]))
    rows = interleave(session, "size", _FIGURES[0], cases)
    base = MultiprocessingConnection.name if arguments.peers else arguments.types[0].name
    title = "size: MiB per second by size of message"
    return Result("size", title, _FIGURES, rows, {"sizes": arguments.sizes}, base)


def _peer_case(peer: PythonPeer, length: int, session: Session) -> Case:
    def run(team: Team, directory: Path) -> Outcome:
        return _outcome(peer.measure(team, directory, _load(length, session)), length)

    return Case(Row(peer.name, {"bytes": length}, note=peer.note, missing=peer.missing()), run)


def _load(length: int, session: Session) -> Load:
    window = max(1, min(_WINDOW, _WINDOW_BYTES // max(length, 1)))
    return Load(session.seconds, window, (bytes(length),), session.patience)


def _outcome(tally: Tally, length: int) -> Outcome:
    rate = tally.received / tally.seconds
    return tally.outcome_of({"throughput": rate * length / _MIB, "rate": rate})


def _transfer(team: Team, config: Config, length: int, session: Session) -> Outcome:
    load = _load(length, session)
    receiver = team.start("the receiver", _receive, config, length)
    dst: ServerID = receiver.receive(START_TIMEOUT)
    sender = team.start("the sender", _send, config, dst, load)
    tally: Tally = sender.receive(load.seconds + 3 * load.patience)
    return _outcome(tally, length)


def _receive(channel: Connection, config: Config, length: int) -> None:
    """Acknowledge messages of the right length until killed."""

    def acknowledge(message: Message) -> None:
        if len(message.data) == length:
            messaging.reply(message, ACK)

    with Messaging(config) as messaging:
        messaging.register(DATA, acknowledge)
        channel.send(messaging.server_id)
        while True:
            messaging.dispatch(None)


def _send(_: Connection, config: Config, dst: ServerID, load: Load) -> Tally:
    with Messaging(config) as messaging:
        messaging.register(ACK, lambda message: None)

        def send(data: bytes) -> None:
            messaging.send(dst, DATA, data, timeout=load.patience)

        return exchange(send, lambda: messaging.dispatch(load.patience), load)


COMMAND = Command(
    "size", "MiB per second, from empty messages to 16 MiB", _DESCRIPTION, _EPILOG, _add_options, _run, 0.5, 3
)
