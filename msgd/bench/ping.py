# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench ping: the LOCAL-MESSAGING test, with which the page of 2006 measured messaging speed."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from msgd._registry import WITH_CLUSTER
from msgd.bench import ctdb_nodes
from msgd.bench.cluster import FIGURES as CLUSTER_FIGURES
from msgd.bench.cluster import broadcast
from msgd.bench.command import BadRequest, Command, check_fits
from msgd.bench.endpoints import answer_pings
from msgd.bench.exchange import CPU, RATE, Load, Tally, exchange, with_cpu
from msgd.bench.options import add_types, at_least, size
from msgd.bench.peers.base import START_TIMEOUT, Peer
from msgd.bench.peers.table import PEERS
from msgd.bench.results import Figure, Outcome, Result, Row
from msgd.bench.runner import Case, Session, interleave
from msgd.bench.subjects import Subject, choose, compiled_in
from msgd.bench.workers import Team
from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType
from msgd.wire.server_id import ServerID

_TEXT = b"testing"
_WINDOW = 20

_PAGE_2006 = {"tdb": 64_850.0, "tdb-nommap": 34_220.0, "dgram": 58_400.0, "stream": 16_850.0}
"""Messages per second on a Thinkpad T41 with 1.7 GHz."""

_FIGURES = (Figure(RATE, "messages/s"), Figure(CPU, "us a message", less_is_better=True))

_RunPing = Callable[[Team, Config, Load], Outcome]

_DESCRIPTION = """\
LOCAL-MESSAGING.  One process sends pairs of pings, one of 7 bytes ("testing")
and one empty; another answers each with a pong.  At most 20 pings are
unanswered at a time.  The rate is pings and pongs per second.  A missing pong
fails the run.

cpu is the CPU time of all processes together for each ping or pong, in
microseconds.  On a busy machine it says more than the rate does.
"""

_EPILOG = """\
examples:
  msgbench ping                     every compiled-in messaging type
  msgbench ping --peers --runs 5    and other ways to exchange messages
  msgbench ping --types tdb,dgram --pin 0
                                    both processes on one CPU
  msgbench ping --cluster           also between three nodes of ctdb, which it
                                    starts on the loopback (needs root and ctdb)

Exit status: 0, 1 if a message was missing, 2 for wrong usage.
"""


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=True)
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="also measure from node to node of a ctdb cluster, and broadcasts to two nodes",
    )
    parser.add_argument("--peers", action="store_true", help="also measure other ways to exchange messages")
    parser.add_argument(
        "--window",
        type=at_least(1),
        default=_WINDOW,
        metavar="N",
        help="how many pings may be unanswered (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=size,
        default=len(_TEXT),
        metavar="BYTES",
        help="length of the longer ping (default: %(default)s)",
    )
    parser.add_argument(
        "--single-process", action="store_true", help="one process that pings itself, as in Samba's own test"
    )


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    check_fits("--size", arguments.size, session.config)
    text = (_TEXT * (arguments.size // len(_TEXT) + 1))[: arguments.size]
    load = Load(session.seconds, arguments.window, (text, b""), session.patience)
    run = _run_in_one_process if arguments.single_process else _run_in_two_processes
    cases = [_case(subject, session.config, load, run) for subject in arguments.types]
    if arguments.peers:
        cases += [_peer_case(peer, load, single_process=arguments.single_process) for peer in PEERS]
    where = "within one process" if arguments.single_process else "between two processes"
    title = f"ping: messages per second {where}, {arguments.size} and 0 bytes, window {arguments.window}"
    with contextlib.ExitStack() as opened:
        figures: tuple[Figure, ...] = _FIGURES
        if arguments.cluster:
            cases += _cluster_cases(opened, session, load, single_process=arguments.single_process)
            figures += CLUSTER_FIGURES
        rows = interleave(session, "ping", _FIGURES[0], cases)
    settings = {
        "window": arguments.window,
        "size": arguments.size,
        "single process": arguments.single_process,
    }
    return Result("ping", title, figures, rows, settings)


def _cluster_cases(
    opened: contextlib.ExitStack, session: Session, load: Load, *, single_process: bool
) -> Iterator[Case]:
    """Three nodes of ctdb: within the first one, from it to the second, and a broadcast to the second and third."""
    if single_process:
        raise BadRequest("--cluster: it measures between processes of several nodes, not with --single-process")
    missing = ctdb_nodes.missing() or _not_clusterable()
    if missing:
        raise BadRequest(f"--cluster: {missing}")
    directory = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="msgbench", dir=session.directory)))
    nodes = opened.enter_context(ctdb_nodes.Nodes(ctdb_nodes.Node, directory)).nodes

    def configs(scratch: Path) -> list[Config]:
        [dgram] = choose(("dgram",))
        return [
            dgram.config(session.config, scratch / str(node.number)).replace(
                clustering=True, ctdbd_socket=str(node.socket)
            )
            for node in nodes
        ]

    def node_to_node(team: Team, scratch: Path, server: int) -> Outcome:
        here, there = configs(scratch)[0], configs(scratch)[server]
        ctdbd = [node.pid for node in nodes[: server + 1]] if server else []
        return _run_in_two_processes(team, there, load, here, ctdbd)

    yield Case(
        Row("dgram, clustered", note="clustering = yes, on one node"), lambda team, path: node_to_node(team, path, 0)
    )
    yield Case(Row("node to node", note="through two ctdbd"), lambda team, path: node_to_node(team, path, 1))
    yield Case(
        Row("broadcast", note="messages to processes of two other nodes"),
        lambda team, path: broadcast(team, configs(path), [node.pid for node in nodes], session),
    )


def _not_clusterable() -> str:
    if not WITH_CLUSTER:
        return "this msgd was configured --without-cluster"
    return "" if "dgram" in compiled_in() else "messaging type dgram is not compiled in"


def _case(subject: Subject, config: Config, load: Load, run: _RunPing) -> Case:
    row = Row(subject.name, note=subject.description, page_2006=_PAGE_2006.get(subject.name))
    return Case(row, lambda team, directory: run(team, subject.config(config, directory), load))


def _peer_case(peer: Peer, load: Load, *, single_process: bool) -> Case:
    missing = "needs two processes" if single_process else peer.missing()
    return Case(Row(peer.name, note=peer.note, missing=missing), lambda team, path: peer.run(team, path, load))


def _run_in_two_processes(
    team: Team, config: Config, load: Load, client_config: Config | None = None, others: Sequence[int] = ()
) -> Outcome:
    """`client_config`: that of the pinging process, if it is on another node.  `others`: whose CPU time counts, too."""
    server = team.start("the ponging process", answer_pings, config)
    dst: ServerID = server.receive(START_TIMEOUT)
    client = team.start("the pinging process", _ping, client_config or config, dst, load, others)
    tally: Tally = client.receive(load.seconds + 2 * load.patience)
    return tally.outcome()


def _run_in_one_process(team: Team, config: Config, load: Load) -> Outcome:
    client = team.start("the process", _ping_itself, config, load)
    tally: Tally = client.receive(load.seconds + 2 * load.patience)
    return tally.outcome()


def _ping(_: Connection, config: Config, dst: ServerID, load: Load, others: Sequence[int]) -> Tally:
    with Messaging(config) as messaging:
        messaging.register(MessageType.PONG, lambda pong: None)
        send = _sender(messaging, dst, load)
        return with_cpu(lambda: exchange(send, lambda: messaging.dispatch(load.patience), load), (dst.pid, *others))


def _ping_itself(_: Connection, config: Config, load: Load) -> Tally:
    """Ping from one context of this process to another.  dispatch() handles the messages of both."""
    pongs = 0

    def pong(_: Message) -> None:
        nonlocal pongs
        pongs += 1

    def receive() -> int:
        before = pongs
        while pongs == before and messaging.dispatch(load.patience):
            pass
        return pongs - before

    with Messaging(config) as messaging, Messaging(config) as other:
        messaging.register(MessageType.PONG, pong)
        send = _sender(messaging, other.server_id, load)
        return with_cpu(lambda: exchange(send, receive, load), ())


def _sender(messaging: Messaging, dst: ServerID, load: Load) -> Callable[[bytes], object]:
    return lambda data: messaging.send(dst, MessageType.PING, data, timeout=load.patience)


COMMAND = Command(
    "ping",
    "messages per second between two processes (LOCAL-MESSAGING)",
    _DESCRIPTION,
    _EPILOG,
    _add_options,
    _run,
)
