# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench fanout: measure a broadcast to many processes."""

from __future__ import annotations

import argparse
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

from msgd.bench.command import Command, check_fits
from msgd.bench.endpoints import ACK, DATA, FINAL, dispatch_until
from msgd.bench.options import add_types, numbers, size
from msgd.bench.peers.base import START_TIMEOUT
from msgd.bench.results import Figure, Outcome, Result
from msgd.bench.runner import Parameters, Session, cases_of, interleave
from msgd.bench.workers import Team
from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.header import Message

_LISTENERS = [4, 16]
_SIZE = 7
_ROUND = 16
"""The listeners answer the last broadcast of each round of this many.

A round does not wait for the answers to the round before it, but for those to the round before that.
"""

_FIGURES = (Figure("deliveries", "messages/s"), Figure("broadcasts", "a second"))

_DESCRIPTION = """\
One process sends to all others with send_all.  The listeners answer every 16th
broadcast, so that none of them falls more than two rounds of 16 behind.  Each
must have received every broadcast at the end.
"""

_EPILOG = """\
examples:
  msgbench fanout --listeners 1,10,100

Exit status: 0, 1 if a listener missed one, 2 for wrong usage.
"""


class _Sent(NamedTuple):
    """The sender's report.  `deliveries` is the sum of what send_all returned."""

    broadcasts: int
    deliveries: int
    seconds: float
    failure: str


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=False)
    parser.add_argument(
        "--listeners", type=numbers(1), default=_LISTENERS, metavar="N,...", help="numbers of listeners (default: 4,16)"
    )
    parser.add_argument(
        "--size", type=size, default=_SIZE, metavar="BYTES", help="length of a message (default: %(default)s)"
    )


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    check_fits("--size", arguments.size, session.config)
    data = bytes(arguments.size)

    def run(team: Team, config: Config, parameters: Parameters) -> Outcome:
        return _broadcast(team, config, int(parameters["listeners"]), data, session)

    cases = cases_of(session, arguments.types, run, [{"listeners": number} for number in arguments.listeners])
    rows = interleave(session, "fanout", _FIGURES[0], cases)
    title = f"fanout: {arguments.size}-byte messages per second, each to all listeners"
    return Result("fanout", title, _FIGURES, rows, {"size": arguments.size}, counts=("broadcasts", "lost"))


def _broadcast(team: Team, config: Config, number: int, data: bytes, session: Session) -> Outcome:
    listeners = [team.start(f"listener {one}", _listen, config, session.patience) for one in range(1, number + 1)]
    for listener in listeners:
        listener.receive(START_TIMEOUT)
    sender = team.start("the sender", _send, config, number, data, session.seconds, session.patience)
    sent: _Sent = sender.receive(session.seconds + 4 * session.patience)
    received = [listener.receive(2 * session.patience) for listener in listeners]
    lost = sum(sent.broadcasts - one for one in received)
    counts = {"broadcasts": sent.broadcasts, "received": sum(received), "lost": lost}
    if sent.failure or lost:
        return Outcome({}, counts, sent.failure or f"{lost} of {sent.broadcasts * number} deliveries are missing")
    rates = {"deliveries": sent.deliveries / sent.seconds, "broadcasts": sent.broadcasts / sent.seconds}
    return Outcome(rates, counts)


def _listen(channel: Connection, config: Config, patience: float) -> int:
    """Count the broadcasts up to the last one, and return their number."""
    received = 0
    ended = False

    def count(message: Message) -> None:
        nonlocal received
        received += 1

    def end(message: Message) -> None:
        nonlocal ended
        ended = True

    with Messaging(config) as messaging:
        messaging.register(DATA, count)
        messaging.register(ACK, count)
        messaging.register(ACK, lambda message: messaging.reply(message, ACK))
        messaging.register(FINAL, end)
        channel.send("ready")
        messaging.dispatch(None)
        dispatch_until(messaging, lambda: ended, patience)
    return received


def _send(channel: Connection, config: Config, listeners: int, data: bytes, seconds: float, patience: float) -> _Sent:
    answers = wanted = broadcasts = deliveries = 0

    def count_answer(message: Message) -> None:
        nonlocal answers
        answers += 1

    def have_answered() -> bool:
        return answers >= wanted

    with Messaging(config) as messaging:
        messaging.register(ACK, count_answer)
        began = now = time.perf_counter()
        complete = True
        while complete and now < began + seconds:
            for number in range(1, _ROUND + 1):
                deliveries += messaging.send_all(ACK if number == _ROUND else DATA, data).delivered
            broadcasts += _ROUND
            complete = dispatch_until(messaging, have_answered, patience)
            wanted += listeners
            now = time.perf_counter()
        complete = complete and dispatch_until(messaging, have_answered, patience)
        elapsed = time.perf_counter() - began
        messaging.send_all(FINAL)
    failure = "" if complete else f"{wanted - answers} answers are missing"
    if complete and deliveries != broadcasts * listeners:
        failure = f"send_all reported {deliveries} deliveries instead of {broadcasts * listeners}"
    return _Sent(broadcasts, deliveries, elapsed, failure)


COMMAND = Command("fanout", "broadcasts to many processes", _DESCRIPTION, _EPILOG, _add_options, _run)
