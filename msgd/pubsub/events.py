# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What a subscriber is told, and what a publisher gets back."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from msgd.errors import HandlerFailed, MsgdError, NoSuchProcess, ReplyTimeout
from msgd.results import Broadcast
from msgd.wire.server_id import ServerID


class Event(NamedTuple):
    """A publication that has come in: its topic, its data as it was published, and who has published it."""

    topic: str
    data: Any
    src: ServerID


class GapReason(enum.Enum):
    """Why a subscriber may have missed something."""

    MISSING = "publications of one publisher are missing between two that have come"
    OVERDUE = "a publication has not come in time: its publisher has ended, or could not send it"
    BEFORE = "something was published before this process subscribed"
    TABLE = "the table of publishers has been replaced"
    NODE = "a node of the cluster, or this node's ctdbd, is no longer connected"
    SLOW = "the queue of this subscription was full"
    ENDED = "the gateway has ended the connection: nothing more will come"


class Gap(NamedTuple):
    """Something may have been missed: what was made of earlier publications is to be made again.

    `missed`: how many publications, to whatever topics; 0 if that is not known.
    """

    reason: GapReason
    missed: int = 0

    def __str__(self) -> str:
        return self.reason.value + (f" ({self.missed} missed)" if self.missed else "")


Callback = Callable[[Event], object]
OnGap = Callable[[Gap], object]


class Publication(Broadcast):
    """What became of a publication: true if anybody took it.

    `delivered`: the number of processes that took it; with wait="acked", that have handled it.  `failures`: why each of
    the others of this node did not, by pid.  `acked`: with wait="acked", how many callbacks have run, by pid.
    `elsewhere`: with wait="acked", for each subscriber of other nodes, how many callbacks have run, or the error.
    `nodes`: which other nodes were sent it, or why not; with wait="acked", those where nobody can say who subscribes.
    """

    __slots__ = ("acked", "elsewhere")

    acked: Mapping[int, int]
    elsewhere: Mapping[ServerID, int | MsgdError]

    def __init__(
        self,
        delivered: int,
        failures: Mapping[int, MsgdError] | None = None,
        nodes: Mapping[int, MsgdError | None] | None = None,
        acked: Mapping[int, int] | None = None,
        elsewhere: Mapping[ServerID, int | MsgdError] | None = None,
    ) -> None:
        super().__init__(delivered, failures, nodes)
        self._set(acked=acked or {}, elsewhere=elsewhere or {})

    @property
    def is_complete(self) -> bool:
        """Whether every living subscriber has taken it, or with wait="acked" has handled it: the dead do not count."""
        return not self.reasons()

    def reasons(self) -> list[MsgdError]:
        """Why it is not complete: the errors of all nodes, but for those of processes that have ended."""
        errors = (*self.failures.values(), *self.elsewhere.values(), *self.nodes.values())
        return [one for one in errors if isinstance(one, MsgdError) and not isinstance(one, NoSuchProcess)]

    @property
    def failed(self) -> dict[int, MsgdError]:
        """The processes where a callback has raised, or had no room."""
        return self._failures(HandlerFailed)

    @property
    def late(self) -> dict[int, MsgdError]:
        """The processes that have not answered in time."""
        return self._failures(ReplyTimeout)

    @property
    def died(self) -> dict[int, MsgdError]:
        """The processes that have ended meanwhile."""
        return self._failures(NoSuchProcess)

    def _failures(self, kind: type[MsgdError]) -> dict[int, MsgdError]:
        return {pid: error for pid, error in self.failures.items() if isinstance(error, kind)}
