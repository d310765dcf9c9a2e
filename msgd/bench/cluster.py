# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Broadcasts to the other nodes of a cluster: what one costs for each node, and for each process there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

from msgd.bench.endpoints import ACK, DATA, FINAL
from msgd.bench.exchange import CPU, RATE, cpu_seconds
from msgd.bench.peers.base import START_TIMEOUT
from msgd.bench.results import Figure, Outcome
from msgd.bench.runner import Session
from msgd.bench.workers import RunFailed, Team
from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

_PROCESSES = 4
"""Receivers on each of the other nodes."""

_BURST = 50
"""Broadcasts after which one receiver of each node is asked whether it has handled them."""

_DATA = b"testing"
_NODE, _PROCESS = "node", "process"

FIGURES = (
    Figure(_NODE, "us a node", less_is_better=True),
    Figure(_PROCESS, "us a process", less_is_better=True),
)
"""The CPU time of a broadcast: of the sender and its ctdbd for each node, of a receiving ctdbd for each process."""


class _Sent(NamedTuple):
    """What the sender has done: broadcasts, what was received, the seconds, and the CPU time of three groups."""

    broadcasts: int
    received: int
    seconds: float
    sending: float
    ctdbd: float
    receiving: float


def broadcast(team: Team, configs: Sequence[Config], ctdbd: Sequence[int], session: Session) -> Outcome:
    """Broadcast from the first node to the processes of the others.  `ctdbd`: the pids of the nodes' daemons."""
    workers = [
        team.start(f"receiver {number} of node {node}", _receive, config)
        for node, config in enumerate(configs[1:], 1)
        for number in range(_PROCESSES)
    ]
    receivers: list[ServerID] = [worker.receive(START_TIMEOUT) for worker in workers]
    client = team.start("the sender", _send, configs[0], receivers, ctdbd, session.seconds, session.patience)
    sent: _Sent = client.receive(session.seconds + 2 * session.patience + START_TIMEOUT)
    expected = sent.broadcasts * len(receivers)
    counts = {"sent": expected, "received": sent.received}
    if sent.received != expected:
        return Outcome({}, counts, f"{sent.received} of {expected} messages were received")
    figures = {
        RATE: expected / sent.seconds,
        CPU: 1e6 * (sent.sending + sent.ctdbd + sent.receiving) / expected,
        _NODE: 1e6 * sent.sending / (sent.broadcasts * (len(configs) - 1)),
        _PROCESS: 1e6 * sent.ctdbd / expected,
    }
    return Outcome(figures, counts)


def _receive(channel: Connection, config: Config) -> None:
    """Report the address; count, and tell the number when asked, until killed."""
    received = 0

    def note(_: Message) -> None:
        nonlocal received
        received += 1

    with Messaging(config) as messaging:
        messaging.register(DATA, note)
        messaging.register(FINAL, lambda message: messaging.reply(message, ACK, b"%d" % received))
        channel.send(messaging.server_id)
        while True:
            messaging.dispatch(None)


def _send(
    _: Connection,
    config: Config,
    receivers: Sequence[ServerID],
    ctdbd: Sequence[int],
    seconds: float,
    patience: float,
) -> _Sent:
    one_of_each = list({one.vnn: one for one in receivers}.values())
    own_ctdbd, others = ctdbd[:1], ctdbd[1:]
    pids = [one.pid for one in receivers]
    with Messaging(config) as messaging:
        nodes = {one.vnn for one in receivers}
        deadline = time.monotonic() + patience
        while set(messaging.send_to_other_nodes(DATA)) != nodes:  # the first may come before the node map
            if time.monotonic() > deadline:
                raise RunFailed(f"not all of the nodes {nodes} are connected")
            messaging.dispatch(0.1)
        before = {one: _count(messaging, one, patience) for one in receivers}
        usage = _usage(own_ctdbd, others, pids)
        began, broadcasts = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _number in range(_BURST):
                messaging.send_to_other_nodes(DATA, _DATA)
            broadcasts += _BURST
            for one in one_of_each:
                _count(messaging, one, patience)
        after = {one: _count(messaging, one, patience) for one in receivers}
        elapsed = time.perf_counter() - began
        used = [now - then for now, then in zip(_usage(own_ctdbd, others, pids), usage, strict=True)]
    received = sum(after[one] - before[one] for one in receivers)
    return _Sent(broadcasts, received, elapsed, used[0], used[1], used[2])


def _count(messaging: Messaging, receiver: ServerID, patience: float) -> int:
    return int(messaging.request(receiver, FINAL, b"", ACK, patience).data)


def _usage(own_ctdbd: Sequence[int], ctdbd: Sequence[int], receivers: Sequence[int]) -> tuple[float, float, float]:
    """The CPU time of the sender and its ctdbd, of the other ctdbd, and of the receivers."""
    own = cpu_seconds(())
    return cpu_seconds(own_ctdbd), cpu_seconds(ctdbd) - own, cpu_seconds(receivers) - own
