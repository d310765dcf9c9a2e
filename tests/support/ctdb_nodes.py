# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Real ctdbd that tests stop, kill and start again; msgd/bench/ctdb_nodes.py runs them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from msgd.bench import ctdb_nodes
from msgd.bench.ctdb_nodes import PATIENCE, await_true, missing

__all__ = ["PATIENCE", "Cluster", "Node", "await_true", "missing"]


class Node(ctdb_nodes.Node):
    """One ctdbd, which a test may stop."""

    def hang(self) -> None:
        """Send SIGSTOP and wait until ctdbd has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Send SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)


class Cluster(ctdb_nodes.Nodes[Node]):
    """Some nodes on one machine; see Nodes."""

    def __init__(self, directory: Path, namespaces: dict[str, str] | None = None) -> None:
        super().__init__(Node, directory, namespaces)

    def restore(self) -> None:
        """Make all nodes run again after a test that has stopped or killed some."""
        for node in self.nodes:
            if node.daemon is None:
                node.start()
            else:
                node.resume()
        self.await_ready()
