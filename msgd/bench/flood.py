# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench flood: measure one-way traffic from several senders to one receiver that only counts."""

from __future__ import annotations

import argparse
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

from msgd.bench.command import Command, check_fits
from msgd.bench.endpoints import DATA, FINAL, drain
from msgd.bench.options import add_types, numbers, size
from msgd.bench.peers.base import START_TIMEOUT
from msgd.bench.results import Figure, Outcome, Result
from msgd.bench.runner import Parameters, Session, cases_of, interleave
from msgd.bench.workers import Team
from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

_SIZE = 7
_SENDERS = [1, 8]
_BETWEEN_CLOCKS = 32
"""Messages sent between two readings of the clock."""

_FIGURE = Figure("rate", "messages/s")

_DESCRIPTION = """\
One or more senders send to one receiver as fast as it reads, one way.  The
rate is that of the arriving messages, from the first to the last.  Each sender
reports how many it sent; one missing message fails the run.
"""

_EPILOG = """\
examples:
  msgbench flood --senders 1,2,4,8
  msgbench flood --types tdb --size 1K

Exit status: 0, 1 if a message was lost, 2 for wrong usage.
"""


class _Received(NamedTuple):
    """The receiver's report: for each sender's pid, the messages received and announced; seconds from first to last."""

    messages: dict[int, int]
    announced: dict[int, int]
    seconds: float


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=False)
    parser.add_argument(
        "--senders", type=numbers(1), default=_SENDERS, metavar="N,...", help="numbers of senders (default: 1,8)"
    )
    parser.add_argument(
        "--size", type=size, default=_SIZE, metavar="BYTES", help="length of a message (default: %(default)s)"
    )


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    check_fits("--size", arguments.size, session.config)

    def run(team: Team, config: Config, parameters: Parameters) -> Outcome:
        return _flood(team, config, int(parameters["senders"]), arguments.size, session)

    cases = cases_of(session, arguments.types, run, [{"senders": number} for number in arguments.senders])
    rows = interleave(session, "flood", _FIGURE, cases)
    title = f"flood: {arguments.size}-byte messages per second, one way, to one receiver"
    return Result("flood", title, (_FIGURE,), rows, {"size": arguments.size}, counts=("sent", "lost"))


def _flood(team: Team, config: Config, senders: int, length: int, session: Session) -> Outcome:
    receiver = team.start("the receiver", _receive, config, senders, session.patience)
    dst: ServerID = receiver.receive(START_TIMEOUT)
    sending = [
        team.start(f"sender {number}", _send, config, dst, bytes(length), session.seconds, session.patience)
        for number in range(1, senders + 1)
    ]
    for sender in sending:
        sender.receive(START_TIMEOUT)
    for sender in sending:
        sender.send("go")
    sent = {sender.pid: sender.receive(session.seconds + 3 * session.patience) for sender in sending}
    received: _Received = receiver.receive(2 * session.patience)
    lost = sum(max(0, number - received.messages.get(pid, 0)) for pid, number in sent.items())
    total, arrived = sum(sent.values()), sum(received.messages.values())
    counts = {"sent": total, "received": arrived, "lost": lost}
    if received.messages != sent or received.announced != sent:
        return Outcome({}, counts, f"{total} messages were sent and {arrived} arrived")
    return Outcome({_FIGURE.name: arrived / received.seconds}, counts)


def _receive(channel: Connection, config: Config, senders: int, patience: float) -> _Received:
    messages: dict[int, int] = {}
    announced: dict[int, int] = {}
    began = 0.0

    def count(message: Message) -> None:
        pid = message.src.pid
        messages[pid] = messages.get(pid, 0) + 1

    def end(message: Message) -> None:
        announced[message.src.pid] = int(message.data)

    with Messaging(config) as messaging:
        messaging.register(DATA, count)
        messaging.register(FINAL, end)
        channel.send(messaging.server_id)
        messaging.dispatch(None)
        began = time.perf_counter()
        while len(announced) < senders and messaging.dispatch(patience):
            pass
        return _Received(messages, announced, time.perf_counter() - began)


def _send(channel: Connection, config: Config, dst: ServerID, data: bytes, seconds: float, patience: float) -> int:
    clock = time.perf_counter
    sent = 0
    with Messaging(config) as messaging:
        channel.send("ready")
        channel.recv()
        now = clock()
        end = now + seconds
        while now < end:
            for _ in range(_BETWEEN_CLOCKS):
                messaging.send(dst, DATA, data, timeout=patience)
            sent += _BETWEEN_CLOCKS
            now = clock()
        messaging.send(dst, FINAL, str(sent).encode(), timeout=patience)
        drain(messaging, patience)
    return sent


COMMAND = Command(
    "flood", "messages per second one way, from one or more senders", _DESCRIPTION, _EPILOG, _add_options, _run
)
