# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What calls of the API return; no transport stands behind these."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple

from msgd.errors import MsgdError
from msgd.immutable import Immutable
from msgd.wire.header import Message


class SendStatus(enum.Enum):
    """What became of a message that send() accepted."""

    SENT = "sent"
    """It is in the receiver's queue (the kernel's or the file's)."""
    QUEUED = "queued"
    """It waits in this process and leaves from dispatch, the event loop or close()."""
    MERGED = "merged"
    """An identical message is still pending, and duplicates_allowed was False."""


class Broadcast(Immutable):
    """What became of a broadcast: true if anybody took it.

    `delivered`: the number of processes of this node that took it.  `failures`: why each of the others did not, by pid.
    `nodes`: for each other node of the cluster that is connected, None if its processes were sent it, or why not.  How
    many of them there are, ctdb cannot tell.
    """

    __slots__ = ("delivered", "failures", "nodes")

    delivered: int
    failures: Mapping[int, MsgdError]
    nodes: Mapping[int, MsgdError | None]

    def __init__(
        self,
        delivered: int,
        failures: Mapping[int, MsgdError] | None = None,
        nodes: Mapping[int, MsgdError | None] | None = None,
    ) -> None:
        self._set(delivered=delivered, failures=failures or {}, nodes=nodes or {})

    def __bool__(self) -> bool:
        return self.delivered > 0 or None in self.nodes.values()


class Survey(Immutable):
    """What became of a question to everybody: true if anybody answered.

    `answers`: the answer of each process, by pid.  `failures`: why each of the others gave none, by pid.
    """

    __slots__ = ("answers", "failures")

    answers: Mapping[int, Message]
    failures: Mapping[int, MsgdError]

    def __init__(self, answers: Mapping[int, Message], failures: Mapping[int, MsgdError] | None = None) -> None:
        self._set(answers=answers, failures=failures or {})

    def __bool__(self) -> bool:
        return bool(self.answers)


class NodeTraffic(NamedTuple):
    """The messages that have been sent to a node, each broadcast once, and those that have come from it."""

    sent: int
    received: int


class Statistics(NamedTuple):
    """What an endpoint has done since it was opened, and what waits in it.

    sent, received: messages; sent_bytes, received_bytes: their data.  queued_messages, queued_bytes: accepted and not
    yet taken by the receiver, for blocked_destinations processes.  drops: messages given up, by reason.  nodes: the
    messages of each other node of the cluster, by its number.
    """

    sent: int
    sent_bytes: int
    received: int
    received_bytes: int
    queued_messages: int
    queued_bytes: int
    blocked_destinations: int
    handler_errors: int
    drops: Mapping[str, int]
    nodes: Mapping[int, NodeTraffic] = {}
