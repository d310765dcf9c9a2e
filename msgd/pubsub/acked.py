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
from collections.abc import Collection

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
from msgd.pubsub.hub import Hub, Parcel
from msgd.wire.pubsub import ACK, PUBLISH, Outcome, unpack_ack
from msgd.wire.server_id import ServerID

ACK_TIMEOUT = 10.0
"""Seconds that a publication waits for its acknowledgements by default."""


def publish_acked(hub: Hub, parcel: Parcel, *, include_self: bool, timeout: float | None) -> Publication:
    """Publish, and wait until every living subscriber has answered; at most `timeout` seconds (None: for ever)."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    asked: dict[int, PendingRequest] = {}
    failures: dict[int, MsgdError] = {}
    with contextlib.ExitStack() as in_flight:
        with hub.numbered(parcel, include_self=include_self) as (frame, subscribers):
            for dst in subscribers:
                try:
                    watched = hub.messaging.watch(dst)
                    in_flight.callback(os.close, watched)
                    beginning = hub.messaging.begin_request(dst, PUBLISH, frame, ACK, _nothing)
                    asked[watched] = in_flight.enter_context(beginning)
                except (NoSuchProcess, QueueFull, TransportError) as error:
                    failures[dst.pid] = error
        wait_for_answers(hub.messaging._endpoint, asked, deadline)
    return collected(asked.values(), failures, timeout)


def collected(asked: Collection[PendingRequest], failures: dict[int, MsgdError], timeout: float | None) -> Publication:
    """What the requests have come to; those that are not settled are late."""
    acked: dict[int, int] = {}
    for request in asked:
        outcome = _outcome(request, timeout)
        if isinstance(outcome, MsgdError):
            failures[request.dst.pid] = outcome
        else:
            acked[request.dst.pid] = outcome
    return Publication(len(acked), failures, acked=acked)


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
    return HandlerFailed(f"a subscriber in pid {request.dst.pid}: {ack.text}", dst=request.dst, message_type=PUBLISH)


def _late(dst: ServerID, timeout: float | None) -> ReplyTimeout:
    text = f"pid {dst.pid} has not handled it within {timeout:g} seconds"
    return ReplyTimeout(text, dst=dst, message_type=PUBLISH)


def _nothing() -> None:
    """Called when a request is settled for which a thread waits: each round of dispatch wakes that in any case."""
