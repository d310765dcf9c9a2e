# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The node map of one link: which nodes there are, which are connected, and how old that knowledge is.

ctdbd loses a message to a node that is not connected, without a word.  So the map is kept current: it is asked for when
ctdbd announces a change, and along with a message to another node if it is older than a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from msgd.errors import NoSuchProcess
from msgd.wire.ctdb import Node, Reply, unpack_nodes
from msgd.wire.server_id import ServerID

_AGE = 1.0
"""Seconds after which the map is asked for again along with a message."""


class NodeMap:
    """The map.  `ask` asks ctdbd for another one and returns whether it could; `on_change` is called when it is there.

    note() gets ctdbd's reply.
    """

    def __init__(self, ask: Callable[[], bool], on_change: Callable[[], None]) -> None:
        self.by_number: Mapping[int, Node] = {}
        self.is_asked = False
        """Whether an answer is on its way."""
        self._ask, self._on_change = ask, on_change
        self._seen = 0.0

    def ask_again(self) -> None:
        """Ask for another map, unless one is on its way."""
        if not self.is_asked:
            self.is_asked = self._ask()

    def forget_question(self) -> None:
        """The connection has ended: no answer will come."""
        self.is_asked = False

    @property
    def is_old(self) -> bool:
        """Whether it is to be asked for again before something is sent."""
        return time.monotonic() - self._seen >= _AGE

    def note(self, reply: Reply) -> None:
        """Take the map from ctdbd's reply.  Raises MalformedMessage."""
        self.by_number = {node.number: node for node in unpack_nodes(reply.data)}
        self.is_asked, self._seen = False, time.monotonic()
        self._on_change()

    def is_connected(self, number: int) -> bool:
        """Whether messages reach the node."""
        node = self.by_number.get(number)
        return node is not None and node.is_connected

    def check(self, dst: ServerID) -> None:
        """Raise NoSuchProcess if the destination's node is not in the cluster or not connected."""
        node = self.by_number.get(dst.vnn)
        if node is None:
            known = ", ".join(map(str, sorted(self.by_number)))
            raise NoSuchProcess(f"no process {dst}: there is no node {dst.vnn} in the cluster, which has {known}")
        if not node.is_connected:
            raise NoSuchProcess(f"no process {dst}: node {dst.vnn} ({node.address}) is {node.state}")
