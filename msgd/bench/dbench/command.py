# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench dbench: connection processes at work, and what their messages cost them."""

from __future__ import annotations

import argparse
import importlib.util
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from msgd.bench.command import BadRequest, Command
from msgd.bench.dbench import load
from msgd.bench.dbench.open_files import OpenFiles
from msgd.bench.dbench.replay import Replay, Tally, own_directory
from msgd.bench.dbench.sharing import MessagingSharing, Sharing
from msgd.bench.endpoints import serve_until_told
from msgd.bench.options import add_types, at_least, numbers
from msgd.bench.peers.base import START_TIMEOUT
from msgd.bench.results import Figure, Outcome, Result, Row
from msgd.bench.runner import Case, Session, interleave
from msgd.bench.subjects import Subject
from msgd.bench.workers import Team, end_all
from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.server_id import ServerID

_CLIENTS = [5, 10]
_VISITS = 20
_WATCHERS = 1
_MB = 1e6

_PAGE_2006 = {
    5: {"tdb": 8.3, "dgram": 7.8, "stream": 7.3},
    10: {"tdb": 7.65, "dgram": 7.26, "stream": 6.78},
}
"""MB/s by number of clients and messaging type."""

_OFF = "no messages"
_FIGURES = (Figure("throughput", "MB/s"), Figure("messages", "a second"))

_DESCRIPTION = """\
The overall benchmark.  One connection process for each client replays a load
file of dbench: it carries out the operations on real files and sends the
messages that a file server sends for them:

  opening a file that another process holds
      MSG_SMB_BREAK_REQUEST to the holder, whose answer is awaited
  creating, renaming or removing a file or directory
      MSG_PVFS_NOTIFY to each process that watches the directory

The processes share a tdb of open files.  `no messages` is the same without the
messages.
"""

_EPILOG = """\
examples:
  msgbench dbench --clients 1,5,10
  msgbench dbench --load /usr/share/dbench/client.txt --directory /var/tmp

The load's `\\clients\\client1` is each client's own directory, which the next
client watches (--watchers).  All clients watch all other directories.  No
other client opens files in a client's own directory; to cause conflicts, every
20th open of a client first reads the file that the next client opened last
(--visits).

Exit status: 0, 1 if a message was lost or an operation did not end as the load
file says, 2 for wrong usage.
"""


class _Setup(NamedTuple):
    """What a connection process is given.  Without a config it sends no messages."""

    config: Config | None
    directory: Path
    clients: int
    watchers: int
    visits: int
    fsync: bool
    operations: Sequence[load.Operation]
    seconds: float
    patience: float


class _Report(NamedTuple):
    """What a connection process did, and how many messages of each kind it sent and received."""

    tally: Tally
    counts: Counter[str]


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_types(parser, variants=False)
    parser.add_argument(
        "--clients", type=numbers(1), default=_CLIENTS, metavar="N,...", help="numbers of clients (default: 5,10)"
    )
    parser.add_argument(
        "--load",
        type=Path,
        default=load.DEFAULT,
        metavar="FILE",
        help="the load file (default: a small one that comes with msgbench)",
    )
    parser.add_argument(
        "--visits",
        type=at_least(0),
        default=_VISITS,
        metavar="N",
        help="every Nth open first reads the next client's file; 0: never (default: %(default)s)",
    )
    parser.add_argument(
        "--watchers",
        type=at_least(0),
        default=_WATCHERS,
        metavar="N",
        help="how many other clients watch each client's directory (default: %(default)s)",
    )
    parser.add_argument("--fsync", action="store_true", help="make Flush write to the disk")


def _run(session: Session, arguments: argparse.Namespace) -> Result:
    if importlib.util.find_spec("tdb") is None:
        raise BadRequest("the table of open files is a tdb: install python3-tdb")
    try:
        operations = load.read(arguments.load)
    except OSError as error:
        raise BadRequest(f"--load {arguments.load}: {error.strerror}") from None
    except load.BadLoad as error:
        raise BadRequest(f"--load: {error}") from None

    def case(subject: Subject | None, clients: int) -> Case:
        def run(team: Team, directory: Path) -> Outcome:
            config = subject.config(session.config, directory) if subject else None
            setup = _Setup(
                config,
                directory,
                clients,
                min(arguments.watchers, clients - 1),
                arguments.visits,
                arguments.fsync,
                operations,
                session.seconds,
                session.patience,
            )
            return _replay(team, setup)

        name, note = (subject.name, subject.description) if subject else (_OFF, "the upper limit")
        page = _PAGE_2006.get(clients, {}).get(name)
        return Case(Row(name, {"clients": clients}, note=note, page_2006=page), run)

    cases = [case(subject, clients) for clients in arguments.clients for subject in (*arguments.types, None)]
    rows = interleave(session, "dbench", _FIGURES[0], cases)
    settings = {
        "load": arguments.load.name,
        "operations": len(operations),
        "visits": arguments.visits,
        "watchers": arguments.watchers,
        "fsync": arguments.fsync,
    }
    title = f"dbench: MB read and written per second by all clients, load {arguments.load.name}"
    return Result("dbench", title, _FIGURES, rows, settings, counts=("operations", "breaks", "notifies", "lost"))


def _replay(team: Team, setup: _Setup) -> Outcome:
    workers = [team.start(f"client {number}", _run_process, number, setup) for number in range(setup.clients)]
    server_ids: dict[int, ServerID | None] = {
        number: worker.receive(START_TIMEOUT) for number, worker in enumerate(workers)
    }
    for worker in workers:
        worker.send(server_ids)
    for worker in workers:
        worker.receive(START_TIMEOUT)
    for worker in workers:
        worker.send("go")
    reports: list[_Report] = [worker.receive(setup.seconds + 4 * setup.patience) for worker in workers]
    end_all(workers, setup.patience)
    counts: Counter[str] = sum((report.counts for report in reports), Counter())
    lost = counts["notifies"] - counts["notices"]
    shown = {
        "operations": sum(report.tally.operations for report in reports),
        "messages": counts["messages"],
        "breaks": counts["breaks"],
        "notifies": counts["notifies"],
        "lost": lost,
    }
    if lost:
        return Outcome({}, shown, f"{lost} of {counts['notifies']} notifies are missing")
    rates = {
        "throughput": sum(report.tally.bytes / report.tally.seconds for report in reports) / _MB,
        "messages": sum(report.counts["messages"] / report.tally.seconds for report in reports),
    }
    return Outcome(rates, shown)


def _run_process(channel: Connection, number: int, setup: _Setup) -> None:
    files = OpenFiles(setup.directory / "open_files.tdb")
    if setup.config is None:
        sharing = Sharing(files, number, setup.clients)
        for _ in ("server ids", "go"):
            channel.send(None)
            channel.recv()
        channel.send(_work(sharing, setup))
        channel.recv()
        return
    with Messaging(setup.config) as messaging:
        channel.send(messaging.server_id)
        serve_until_told(messaging, channel)
        watchers = [(number + step) % setup.clients for step in range(1, setup.watchers + 1)]
        sharing = MessagingSharing(
            files, number, messaging, channel.recv(), watchers, own_directory(number), setup.patience
        )
        channel.send("ready")
        serve_until_told(messaging, channel)
        channel.recv()
        channel.send(_work(sharing, setup))
        serve_until_told(messaging, channel)


def _work(sharing: Sharing, setup: _Setup) -> _Report:
    replay = Replay(setup.directory / "share", sharing, setup.visits, fsync=setup.fsync)
    tally = replay.run(setup.operations, setup.seconds)
    sharing.finish()
    return _Report(tally, sharing.counts)


COMMAND = Command(
    "dbench", "the overall benchmark: file operations and their messages", _DESCRIPTION, _EPILOG, _add_options, _run
)
