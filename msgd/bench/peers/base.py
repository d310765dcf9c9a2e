# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The interface of a peer: another way to exchange messages, which is measured for comparison."""

from __future__ import annotations

import abc
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

from msgd.bench.exchange import Load, Tally, with_cpu
from msgd.bench.results import Outcome
from msgd.bench.workers import Team

START_TIMEOUT = 30.0
"""Seconds in which a process must have started.  It takes a fraction of one."""


class Peer(abc.ABC):
    """One way to exchange messages.  `name` and `note` are shown in its row of the table."""

    name: ClassVar[str]
    note: ClassVar[str] = ""

    @abc.abstractmethod
    def missing(self) -> str:
        """Return the reason why the peer cannot be measured on this machine; an empty string if it can."""

    @abc.abstractmethod
    def run(self, team: Team, directory: Path, load: Load) -> Outcome:
        """Measure one run with processes of `team`.  `directory` is empty and belongs to this run."""


class PythonPeer(Peer):
    """A peer with an answering process and a pinging one, both in Python."""

    module: ClassVar[str]
    """The module that the peer needs."""

    package: ClassVar[str] = ""
    """The package to install for it."""

    def missing(self) -> str:
        if importlib.util.find_spec(self.module) is None:
            return f"{self.package} is not installed (pip install {self.package})"
        return ""

    def run(self, team: Team, directory: Path, load: Load) -> Outcome:
        return self.measure(team, directory, load).outcome()

    def measure(self, team: Team, directory: Path, load: Load, others: Sequence[int] = ()) -> Tally:
        """Measure one run.  `others` are the pids of further processes whose CPU time counts."""

        def ping(_: Connection) -> Tally:
            importlib.import_module(self.module)  # so that the import is not measured
            return with_cpu(lambda: self.ping(directory, load), (server.pid, *others))

        server = team.start("the answering process", lambda channel: self.serve(directory, lambda: channel.send(True)))
        server.receive(START_TIMEOUT)
        client = team.start("the pinging process", ping)
        tally: Tally = client.receive(load.seconds + load.patience)
        return tally

    def answer(self, data: bytes) -> bytes:
        """Return the answer to a message: the same bytes."""
        return data

    @abc.abstractmethod
    def serve(self, directory: Path, ready: Callable[[], None]) -> None:
        """Call `ready` once clients can connect, then send the answer() to each message until killed."""

    @abc.abstractmethod
    def ping(self, directory: Path, load: Load) -> Tally:
        """Connect, and exchange the messages of the load."""
