# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How a thread waits for the answer to its request, or for room in a queue, beside others or by itself.

Where nobody dispatches, the thread dispatches itself, as a guest (turn.py).  Where somebody does, it waits to be woken:
when the turn becomes free, and after each round of the other thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Mapping

from msgd.errors import MsgdError, NoSuchProcess, QueueFull, is_of_system, system_error
from msgd.linux import LONGEST_WAIT
from msgd.messaging.endpoint import Endpoint
from msgd.messaging.requests import PendingRequest
from msgd.messaging.turn import Waiter
from msgd.messaging.watched import Watched
from msgd.results import SendStatus
from msgd.wire.server_id import ServerID

_IDLE_ROUNDS = 2
"""Rounds without a message after which nothing of an ended process can be on its way: one may have been running."""


def wait_for_answers(
    endpoint: Endpoint, asked: Mapping[int, PendingRequest], deadline: float, watched: Watched | None = None
) -> None:
    """Wait until all requests are settled or the deadline has passed.

    `asked`: by the pidfds of the processes, which are in the set `watched`; without one it is a single request.  When a
    process has ended and nothing of it is on its way, its request is settled by NoSuchProcess.  Raises ContextClosed,
    ForkedContext.
    """
    unanswered = _Unanswered(asked, watched)
    if _dispatch_for(endpoint, unanswered, deadline):
        return
    with Waiter(endpoint.turn) as waiter:
        while unanswered.any_open and time.monotonic() < deadline:
            endpoint.check_usable()
            if not _dispatch_for(endpoint, unanswered, deadline):
                _wait_beside(endpoint, unanswered, waiter, deadline)


class _Unanswered:
    """The requests that wait for their answers; `fd` is readable when a process that was asked has ended."""

    def __init__(self, asked: Mapping[int, PendingRequest], watched: Watched | None) -> None:
        self._asked = asked
        self._watched = watched
        self.fd = next(iter(asked), -1) if watched is None else watched.fileno()

    @property
    def any_open(self) -> bool:
        """Whether a request is not settled yet."""
        return any(request.answer is None and request.error is None for request in self._asked.values())

    def watch_again(self, requests: Collection[PendingRequest]) -> None:
        """Have ended() name these once more."""
        if self._watched is not None:
            self._watched.watch_again([pidfd for pidfd, request in self._asked.items() if request in requests])

    def ended(self) -> list[PendingRequest]:
        """The open requests whose processes have ended since the last call.

        Call it only when `fd` is readable.  With one request and no set, the answer is that request.
        """
        ended = list(self._asked) if self._watched is None else self._watched.ended()
        return [request for pidfd in ended if (request := self._asked.get(pidfd)) and not request.is_settled]


def _dispatch_for(endpoint: Endpoint, unanswered: _Unanswered, deadline: float) -> bool:
    """Dispatch until every request is settled or the deadline has passed.

    Returns False, perhaps earlier, if another thread is to dispatch.
    """
    me, turn = threading.get_ident(), endpoint.turn
    outermost = turn.owner != me
    try:
        if outermost and not turn.take_as_guest():
            return False
        endpoint.round()
        while unanswered.any_open and (left := deadline - time.monotonic()) > 0:
            if outermost and turn.hosts_waiting:
                return False
            endpoint.check_usable()
            has_ended = endpoint.backend.wait(min(left, LONGEST_WAIT), unanswered.fd)
            ended = unanswered.ended() if has_ended else []
            endpoint.round()
            while ended and endpoint.round() and time.monotonic() < deadline:
                pass
            _settle_ended(ended)
        return True
    finally:
        if outermost:
            turn.release(me)


def _wait_beside(endpoint: Endpoint, unanswered: _Unanswered, waiter: Waiter, deadline: float) -> None:
    """Wait once while another thread dispatches; if processes have ended, until it has seen all that they sent."""
    if not waiter.wait(deadline - time.monotonic(), unanswered.fd):
        return
    ended = unanswered.ended()
    enough = endpoint.idle_rounds + _IDLE_ROUNDS
    while ended and endpoint.turn.is_served and endpoint.idle_rounds < enough and time.monotonic() < deadline:
        endpoint.backend.wake()
        waiter.wait(deadline - time.monotonic())
    if endpoint.idle_rounds >= enough:
        _settle_ended(ended)
    else:
        unanswered.watch_again(ended)  # the other thread has stopped dispatching: this one sees to it next


def _settle_ended(ended: list[PendingRequest]) -> None:
    for request in ended:
        request.settle(error=_ended(request))


def _ended(request: PendingRequest) -> NoSuchProcess:
    return NoSuchProcess(f"{request.dst} ended before it answered", dst=request.dst)


def send_again(
    endpoint: Endpoint,
    error: Exception,
    dst: ServerID,
    src: ServerID,
    message_type: int,
    data: bytes,
    fds: Collection[int],
    duplicates_allowed: bool,
    timeout: float | None,
) -> SendStatus:
    """Wait for room and send again if that is what the error and the timeout ask for, else raise the error."""
    if is_of_system(error):
        raise system_error(f"sending to {dst}", error) from error  # type: ignore[arg-type]
    if not isinstance(error, MsgdError):
        dst.check()  # a field that does not fit the wire's is the caller's ValueError
        raise error
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while isinstance(error, QueueFull) and time.monotonic() < deadline:
        _wait_for_room(endpoint, deadline)
        try:
            return endpoint.send(dst, src, message_type, data, fds, duplicates_allowed)
        except MsgdError as another:
            error = another
    error.dst, error.type = dst, message_type
    raise error


def _wait_for_room(endpoint: Endpoint, deadline: float) -> None:
    """Wait once: until a full queue may have room, another thread has dispatched, or the deadline has passed."""
    left = min(deadline - time.monotonic(), LONGEST_WAIT)
    if left <= 0:
        return
    if threading.active_count() == 1:  # the lock holds nobody up: wait as is best for the transport
        with endpoint.lock:
            endpoint.backend.flush(left)
        return
    with Waiter(endpoint.turn) as waiter:
        if not _poll_for_room(endpoint, left):
            waiter.wait(left)


def _poll_for_room(endpoint: Endpoint, left: float) -> bool:
    """Take the turn and wait.  Returns False if another thread is to dispatch."""
    me, turn, was_woken = threading.get_ident(), endpoint.turn, False
    outermost = turn.owner != me
    try:
        if outermost and not turn.take_as_guest():
            return False
        with endpoint.lock:
            endpoint.check_usable()
            was_woken = endpoint.backend.take_wake()  # it is for the next dispatch, and would end each wait at once
            if outermost and turn.hosts_waiting:
                return False
            poll = endpoint.backend.poll_for_room()
        poll.poll(left * 1000)
        with endpoint.lock:
            endpoint.backend.flush()
        return True
    finally:
        if was_woken:
            endpoint.backend.wake()
        if outermost:
            turn.release(me)
