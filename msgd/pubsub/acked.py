# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Publications that are acknowledged: each subscriber is asked, and answers when its callbacks have returned.

The answer is that of a request (messaging/requests.py), so the end of a process is told at once, and any number of
publications may wait for their answers, from any threads.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Collection, Mapping

from msgd.errors import (
    HandlerFailed,
    MalformedMessage,
    MsgdError,
    NoHandler,
    NoSuchProcess,
    QueueFull,
    ReplyTimeout,
    TransportError,
)
from msgd.messaging.requests import PendingRequest
from msgd.messaging.waiting import wait_for_answers
from msgd.pubsub.events import Publication
from msgd.pubsub.hub import Hub
from msgd.pubsub.parcel import Parcel
from msgd.wire.pubsub import ACK, PUBLISH, Outcome, unpack_ack
from msgd.wire.server_id import ServerID

ACK_TIMEOUT = 10.0
"""Seconds that a publication waits for its acknowledgements by default."""


def publish_acked(hub: Hub, parcel: Parcel, *, include_self: bool, timeout: float | None) -> Publication:
    """Publish, and wait until every living subscriber has answered; at most `timeout` seconds (None: for ever)."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    elsewhere, nodes = _call_rolls(hub, deadline)
    asked: dict[int, PendingRequest] = {}
    failures: dict[ServerID, MsgdError] = {}
    with hub.watched.borrow() as watched, contextlib.ExitStack() as in_flight:
        with hub.numbered(parcel, elsewhere, include_self=include_self) as (frame, subscribers):
            for dst in subscribers:
                try:
                    pidfd = watched.pidfd(dst, hub.messaging._watch_for_answer)
                    beginning = hub.messaging.begin_request(dst, PUBLISH, frame, ACK, _nothing)
                    asked[pidfd] = in_flight.enter_context(beginning)
                except (NoSuchProcess, QueueFull, TransportError) as error:
                    failures[dst] = error
            if len(watched) > len(subscribers):
                watched.keep_only(subscribers)
        wait_for_answers(hub.messaging._endpoint, asked, deadline, watched)
        if elsewhere:
            watched.keep_only([dst for dst in subscribers if dst not in elsewhere])
    return collected(hub, asked.values(), failures, nodes, timeout)


def _call_rolls(hub: Hub, deadline: float) -> tuple[list[ServerID], dict[int, MsgdError]]:
    """Wait until the other nodes have said who subscribes there; see OtherNodes.take_rolls()."""
    others = hub.others
    if others is None:
        return [], {}
    with contextlib.ExitStack() as opened:
        asked = opened.enter_context(others.rolls(_nothing))
        by_fd: dict[int, PendingRequest] = {}
        for request in asked:
            read_end, write_end = os.pipe()  # nothing of the node itself can be watched
            opened.callback(os.close, read_end)
            opened.callback(os.close, write_end)
            by_fd[read_end] = request
        if by_fd:
            wait_for_answers(hub.messaging._endpoint, by_fd, min(deadline, time.monotonic() + others.roll_timeout))
        return others.take_rolls(asked)


def collected(
    hub: Hub,
    asked: Collection[PendingRequest],
    failures: Mapping[ServerID, MsgdError],
    nodes: Mapping[int, MsgdError],
    timeout: float | None,
) -> Publication:
    """What the requests have come to; those that are not settled are late."""
    outcomes: dict[ServerID, int | MsgdError] = dict(failures)
    outcomes |= {request.dst: _outcome(request, timeout) for request in asked}
    is_here = hub.messaging._endpoint.presence.is_here
    if hub.others is not None:
        gone = [one.dst for one in asked if isinstance(one.error, NoHandler)]
        hub.others.forget([*gone, *(dst for dst, one in outcomes.items() if isinstance(one, NoSuchProcess))])
    here = {dst.pid: outcome for dst, outcome in outcomes.items() if is_here(dst)}
    return Publication(
        sum(not isinstance(outcome, MsgdError) for outcome in outcomes.values()),
        {pid: outcome for pid, outcome in here.items() if isinstance(outcome, MsgdError)},
        nodes,
        acked={pid: outcome for pid, outcome in here.items() if not isinstance(outcome, MsgdError)},
        elsewhere={dst._replace(task_id=0): outcome for dst, outcome in outcomes.items() if not is_here(dst)},
    )


def _outcome(request: PendingRequest, timeout: float | None) -> int | MsgdError:
    """How many callbacks have run in the process, or why nobody can say so."""
    if isinstance(request.error, NoHandler):
        return 0  # it has stopped to subscribe since it was asked
    if request.answer is None:
        return request.error or _late(request.dst, timeout)
    try:
        ack = unpack_ack(request.answer.data)
    except MalformedMessage as error:
        return error
    if ack.outcome is Outcome.HANDLED:
        return ack.callbacks
    return HandlerFailed(
        f"a subscriber in pid {request.dst.process}: {ack.text}", dst=request.dst, message_type=PUBLISH
    )


def _late(dst: ServerID, timeout: float | None) -> ReplyTimeout:
    text = f"pid {dst.process} has not handled it within {timeout:g} seconds"
    return ReplyTimeout(text, dst=dst, message_type=PUBLISH)


def _nothing() -> None:
    """Called when a request is settled for which a thread waits: each round of dispatch wakes that in any case."""
