# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The interface of a peer: it can ping, or it gives the reason why it cannot be measured here."""

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

STARTING = 30.0
"""Seconds within which a process has to be there; a fraction of one is what it takes."""


class Peer(abc.ABC):
    """One way to ping.  `name` is the row's, `note` says what is different about it."""

    name: ClassVar[str]
    note: ClassVar[str] = ""

    @abc.abstractmethod
    def missing(self) -> str:
        """Why it cannot be measured on this machine; nothing if it can."""

    @abc.abstractmethod
    def run(self, team: Team, directory: Path, load: Load) -> Outcome:
        """Ping once with processes of `team`; `directory` is empty and for this run alone."""


class PythonPeer(Peer):
    """A peer with an answering process and a pinging one, both in Python."""

    module: ClassVar[str]
    """The module that it needs."""

    package: ClassVar[str] = ""
    """What to install to have it."""

    def missing(self) -> str:
        if importlib.util.find_spec(self.module) is None:
            return f"{self.package} is not installed (pip install {self.package})"
        return ""

    def run(self, team: Team, directory: Path, load: Load) -> Outcome:
        return self.measure(team, directory, load).outcome()

    def measure(self, team: Team, directory: Path, load: Load, others: Sequence[int] = ()) -> Tally:
        """Ping once; `others` are the pids of further processes that work for it."""

        def ping(_: Connection) -> Tally:
            importlib.import_module(self.module)  # not while the processor time is measured
            return with_cpu(lambda: self.ping(directory, load), (server.pid, *others))

        server = team.start("the answering process", lambda channel: self.serve(directory, lambda: channel.send(True)))
        server.hear(STARTING)
        client = team.start("the pinging process", ping)
        tally: Tally = client.hear(load.seconds + load.patience)
        return tally

    def answer(self, data: bytes) -> bytes:
        """What is sent back for a message: the same."""
        return data

    @abc.abstractmethod
    def serve(self, directory: Path, ready: Callable[[], None]) -> None:
        """Call `ready` once clients can connect, then answer() each message until the process is killed."""

    @abc.abstractmethod
    def ping(self, directory: Path, load: Load) -> Tally:
        """Connect and ping."""
