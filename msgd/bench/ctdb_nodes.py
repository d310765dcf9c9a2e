# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Real ctdbd: the nodes of a cluster on addresses of the loopback, without systemd.

Rule 1.  Each cluster has its own addresses, since ctdb's port is fixed.  A cluster that finds them taken takes the next
ones.
Rule 2.  A node counts as dead after 4 seconds here; ctdb's own defaults are 28.
Rule 3.  A node's helpers do not always end with it, so each is found before the node ends, and killed by its pid.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, Self, TypeVar

PORT = 4379
PATIENCE = 60.0
"""Seconds after which a cluster that is not ready is given up."""

_STEP = 0.05
_TUNABLES = (
    "KeepaliveInterval=1\nKeepaliveLimit=3\nMonitorInterval=1\n"
    "RecoverInterval=1\nRerecoveryTimeout=1\nElectionTimeout=1\n"
)
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class NotReady(Exception):
    """The cluster is not ready in time, or a ctdbd has ended; the text is what they say."""


def missing() -> str | None:
    """What is missing to run ctdb here, and how to get it; None if nothing is missing."""
    if os.geteuid() != 0:
        return "ctdbd needs root: run this as root"
    if shutil.which("ctdbd", path=_PATH) is None:
        return "ctdbd not found: apt-get install ctdb"
    return None


class Node:
    """One ctdbd, in a directory of its own.  `prefix`: what its commands are run by."""

    def __init__(self, number: int, address: str, directory: Path, lock: Path, prefix: tuple[str, ...] = ()) -> None:
        self.number = number
        self.address = address
        self.directory = directory
        self.socket = directory / "run" / "ctdbd.socket"
        self._prefix = prefix
        self.daemon: subprocess.Popen[bytes] | None = None
        for name in ("run", "events/legacy", "volatile", "persistent", "state"):
            (directory / name).mkdir(parents=True)
        (directory / "ctdb.tunables").write_text(_TUNABLES)
        (directory / "ctdb.conf").write_text(
            f"[logging]\n    location = file:{directory}/log\n"
            f"[cluster]\n    node address = {address}\n    leader timeout = 2\n    cluster lock = {lock}\n"
            f"[database]\n    volatile database directory = {directory}/volatile\n"
            f"    persistent database directory = {directory}/persistent\n"
            f"    state database directory = {directory}/state\n"
            "[failover]\n    disabled = true\n"
        )

    @property
    def pid(self) -> int:
        """The pid of its ctdbd."""
        assert self.daemon is not None
        return self.daemon.pid

    def start(self) -> None:
        """Start ctdbd; Nodes.await_ready() waits until it works."""
        (self.directory / "run" / "ctdbd.pid").unlink(missing_ok=True)
        with (self.directory / "output").open("ab") as output:
            self.daemon = subprocess.Popen(
                [*self._prefix, "ctdbd", "--interactive"],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        """Whether it runs, and all nodes are connected and healthy in its eyes.  Raises NotReady if it has ended."""
        assert self.daemon is not None
        if self.daemon.poll() is not None:
            raise NotReady(f"ctdbd of node {self.number} has exited:\n{self.log()}")
        return self.socket.exists() and self.ctdb("nodestatus", "all")[0] == 0

    def ctdb(self, *arguments: str) -> tuple[int, str]:
        """Run the `ctdb` tool on this node; its exit status and output."""
        done = subprocess.run(
            [*self._prefix, "ctdb", *arguments],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout

    def kill(self) -> None:
        """Kill ctdbd, as a crash of the node would, and its helpers."""
        if self.daemon is None:
            return
        helpers = tuple(_descendants(self.pid))
        self.daemon.kill()
        self.daemon.wait()
        self.daemon = None
        for pid in helpers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def log(self) -> str:
        """The end of its log and its output."""
        paths = (self.directory / "log", self.directory / "output")
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in paths if path.exists())

    def _environment(self) -> dict[str, str]:
        return os.environ | {"PATH": _PATH, "CTDB_TEST_MODE": "yes", "CTDB_BASE": str(self.directory)}


N = TypeVar("N", bound=Node)


class Nodes(Generic[N]):
    """Some nodes on one machine; they run inside the `with` block.  Raises NotReady.

    `namespaces`: by address, the network namespace in which that node runs; by default, three nodes on the loopback.
    """

    def __init__(self, kind: type[N], directory: Path, namespaces: dict[str, str] | None = None) -> None:
        addresses = list(namespaces or _free_addresses(3))
        self.nodes = [
            kind(
                number,
                address,
                directory / str(number),
                directory / "lock",
                ("ip", "netns", "exec", namespaces[address]) if namespaces else (),
            )
            for number, address in enumerate(addresses)
        ]
        for node in self.nodes:
            (node.directory / "nodes").write_text("".join(f"{address}\n" for address in addresses))

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            self.await_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()

    def await_ready(self) -> None:
        """Wait until every node sees every node healthy."""
        await_true(lambda: all(node.is_ready() for node in self.nodes), self.report)

    def report(self) -> str:
        """What the nodes say of each other, for an error."""
        return "\n".join(f"node {node.number}: {node.ctdb('nodestatus', 'all')}\n{node.log()}" for node in self.nodes)


def await_true(is_true: Callable[[], bool], report: Callable[[], str] = str, patience: float = PATIENCE) -> None:
    """Wait until another program's state is as wanted, where nothing announces it.

    Raises NotReady with the report after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while not is_true():
        if time.monotonic() > deadline:
            raise NotReady(f"not so within {patience:g} seconds:\n{report()}")
        select.select([], [], [], _STEP)


def _free_addresses(number: int) -> list[str]:
    """Addresses of the loopback on which no ctdbd listens; the choice begins with this process's pid."""
    for attempt in range(200):
        block = 1 + (os.getpid() + attempt) % 250
        addresses = [f"127.0.{block}.{host}" for host in range(1, number + 1)]
        if all(_is_free(address) for address in addresses):
            return addresses
    raise NotReady(f"no addresses 127.0.x.x are free on port {PORT}")


def _is_free(address: str) -> bool:
    try:
        socket.create_server((address, PORT)).close()
    except OSError:
        return False
    return True


def _descendants(pid: int) -> Iterator[int]:
    """The living descendants of a process."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from _descendants(child)
