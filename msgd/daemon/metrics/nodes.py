# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The metrics of a cluster: its nodes, as this node's ctdbd sees them at the scrape, and the messages to and from each.

ctdbd is asked by the process that answers the scrape, so one that hangs holds up nobody else.
"""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgd.config import Config
from msgd.daemon.metrics.metered import NODE
from msgd.errors import TransportError
from msgd.wire.ctdb import Node, NodeFlag

if TYPE_CHECKING:
    from prometheus_client.core import Metric

logger = logging.getLogger("msgd.daemon")

_PATIENCE = 2000
"""Milliseconds that ctdbd has for its answer: a scrape has ANSWER_LIMIT seconds for everything."""


def node_families(config: Config, totals: Counter[str]) -> Iterator[Metric]:
    """The metrics of the nodes.  It waits for ctdbd."""
    core = importlib.import_module("prometheus_client.core")
    nodes = _ask(config)
    text = "Whether this node's ctdbd has said at this scrape which nodes there are"
    yield core.GaugeMetricFamily("msgd_ctdbd_up", text, value=nodes is not None)
    states = core.GaugeMetricFamily(
        "msgd_node_state", "1 for each state that the node is in: ok, or others", labels=["node", "address", "state"]
    )
    for node in nodes or ():
        states.add_metric([str(node.number), node.address, "ok"], not node.flags)
        for flag in NodeFlag:
            states.add_metric([str(node.number), node.address, str(flag.name).lower()], bool(node.flags & flag))
    yield states
    messages = core.CounterMetricFamily(
        "msgd_node_messages", "Messages to and from the processes of another node", labels=["direction", "node"]
    )
    for name, number in sorted(totals.items()):
        if name.startswith(NODE):
            messages.add_metric(name.removeprefix(NODE).split(), number)
    yield messages


def _ask(config: Config) -> tuple[Node, ...] | None:
    from msgd.cluster import asking  # only in a cluster

    timeout = min(config.ctdb_timeout or _PATIENCE, _PATIENCE)
    try:
        return asking.nodes(config.replace(ctdb_timeout=timeout))
    except TransportError as error:
        logger.warning("the states of the nodes are left out of a scrape: %s", error)
        return None
