# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What one client has asked and waits for: calls, publications to be acknowledged, lists of topics.

Rule 1.  Each asks one process or several.  It is answered once: when all of them have answered or ended, when its time
    is over, or when the client cancels it; but not if the client hears no more.
Rule 2.  What is asked of a process is a request of the context (messaging/requests.py), so each gets its own answer,
    and a process of msgd's that handles no such type says so at once.
Rule 3.  A process may have answered just before it ended, so its end (its pidfd is readable) settles nothing at once.
    The context is dispatched until a dispatch handles no message: then whatever the process had sent has been read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from msgd.daemon.loop import Loop, LoopTimer
from msgd.errors import MsgdError, NoSuchProcess, QueueFull, ReplyTimeout, TransportError
from msgd.messaging import Messaging
from msgd.messaging.requests import PendingRequest
from msgd.wire.gateway.limits import MAX_CALLS
from msgd.wire.gateway.replies import write_answer, write_message, write_refusal
from msgd.wire.gateway.requests import Asked, Call, Tag
from msgd.wire.message_types import type_name
from msgd.wire.server_id import ServerID

_NEXT_TURN = 0.001
"""Seconds.  With a timeout of 0 an answer counts if it is there when the loop polls next."""

Failures = dict[ServerID, MsgdError]
"""Why processes could not be asked."""


class Question(NamedTuple):
    """A message, and the type that answers it."""

    type: int
    data: bytes
    answer: int


@dataclass(eq=False)
class _Pending:
    asked: Asked
    timer: LoopTimer
    conclude: Callable[[], Mapping[str, object] | None]
    """The members of the answer, from what is known; None if another call answers.  A MsgdError refuses the request."""
    in_flight: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    requests: dict[int, PendingRequest] = field(default_factory=dict)
    """By pidfd; below 0 where there is none."""
    ended: set[int] = field(default_factory=set)
    """The pidfds of processes that have ended; their last messages may be unread."""

    is_begun: bool = False
    """Whether all that are to be asked have been asked."""

    @property
    def is_settled(self) -> bool:
        return self.is_begun and all(request.is_settled for request in self.requests.values())


class Calls:
    """The pending calls; `reply` takes the line that answers one, `no_memory` the length of answers without room."""

    def __init__(
        self, messaging: Messaging, loop: Loop, reply: Callable[[bytes], None], no_memory: Callable[[int], None]
    ) -> None:
        self._messaging = messaging
        self._loop = loop
        self._reply = reply
        self._no_memory = no_memory
        self._pending: list[_Pending] = []

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def needs_dispatch(self) -> bool:
        """Whether the context has to be dispatched, readable or not, to settle calls to ended processes (rule 3)."""
        return any(call.ended for call in self._pending)

    def check_room(self) -> None:
        """Raise QueueFull if there may not be one more."""
        if len(self._pending) >= MAX_CALLS:
            raise QueueFull(f"{len(self._pending)} calls wait for their answers, which is the limit")

    def start(self, asked: Asked, request: Call) -> None:
        """Send the message of a call and wait for its answer.

        Raises QueueFull for too many calls, and what Messaging.watch() and Messaging.send() raise.
        """
        self.check_room()

        def conclude() -> Mapping[str, object]:
            (pending,) = call.requests.values()
            if not pending.is_settled:
                what = type_name(request.type)
                raise ReplyTimeout(f"{request.to} did not answer {what} within {request.timeout:g} seconds")
            return {"answer": write_message(pending.result())}

        call = self._new(asked, request.timeout, conclude)
        try:
            pidfd = self._messaging.watch(request.to)
            self._ask(call, self._messaging, request.to, pidfd, Question(request.type, request.data, request.answer))
        except BaseException:
            self._let_go(call)
            raise
        self._note_begun(call)

    def ask_all(
        self,
        asked: Asked,
        timeout: float,
        messaging: Messaging,
        processes: Iterable[ServerID],
        question: Question,
        conclude: Callable[[Collection[PendingRequest], Failures], Mapping[str, object]],
    ) -> None:
        """Ask several processes, and wait until all are settled or the time is over.

        `conclude` makes the answer of the requests, settled or not, and of why others could not be asked.  Call
        check_room() first.
        """
        failures: Failures = {}
        call = self._new(asked, timeout, lambda: conclude(call.requests.values(), failures))
        try:
            for dst in processes:
                try:
                    self._ask(call, messaging, dst, messaging._watch_for_answer(dst), question)
                except (NoSuchProcess, QueueFull, TransportError) as error:
                    failures[dst] = error
        except BaseException:
            self._let_go(call)
            raise
        self._note_begun(call)

    def go_on_later(
        self,
        asked: Asked,
        timeout: float,
        beginning: Callable[[Callable[[], None]], contextlib.AbstractContextManager[list[PendingRequest]]],
        go_on: Callable[[list[PendingRequest]], None],
    ) -> None:
        """Wait until these requests are settled, or the time is over, and then `go_on`, which answers or asks others.

        `beginning` has them in flight; it is given what is to be called when one is settled.
        """
        requests: list[PendingRequest] = []
        call = self._new(asked, timeout, lambda: go_on(requests))
        try:
            requests += call.in_flight.enter_context(beginning(lambda: self._finish_if_settled(call)))
            call.requests.update({-number: request for number, request in enumerate(requests, start=1)})
        except BaseException:
            self._let_go(call)
            raise
        self._note_begun(call)

    def cancel(self, tag: Tag) -> None:
        """Give up the calls that were asked with this id.  There is none if the answer is on its way already."""
        for call in [call for call in self._pending if call.asked.tag == tag]:
            self._settle(call, write_refusal(call.asked.op, tag, ReplyTimeout("the client has cancelled it")))

    def close(self) -> None:
        """Give up all calls without a word: the client hears no more."""
        while self._pending:
            self._let_go(self._pending[0])

    def after_dispatch(self, handled: int) -> None:
        """The context has been dispatched and has handled so many messages."""
        if not handled:
            for call in [call for call in self._pending if call.ended]:
                ended, call.ended = call.ended, set()
                for pidfd in ended:
                    call.requests[pidfd].settle(error=NoSuchProcess("the process ended before it answered"))

    # One call

    def _new(self, asked: Asked, timeout: float, conclude: Callable[[], Mapping[str, object] | None]) -> _Pending:
        timer = self._loop.call_later(timeout or _NEXT_TURN, lambda: self._finish(call))
        call = _Pending(asked, timer, conclude)
        self._pending.append(call)
        return call

    def _ask(self, call: _Pending, messaging: Messaging, dst: ServerID, pidfd: int, question: Question) -> None:
        """Ask a process; `pidfd`, which it is watched by, is closed in the end."""
        with contextlib.ExitStack() as in_flight:
            in_flight.callback(os.close, pidfd)
            beginning = messaging.begin_request(
                dst, question.type, question.data, question.answer, lambda: self._finish_if_settled(call)
            )
            call.requests[pidfd] = in_flight.enter_context(beginning)
            self._loop.on_readable(pidfd, lambda: self._note_end(call, pidfd))
            in_flight.callback(self._loop.on_readable, pidfd, None)
            call.in_flight.push(in_flight.pop_all())

    def _note_begun(self, call: _Pending) -> None:
        call.is_begun = True
        self._finish_if_settled(call)

    def _note_end(self, call: _Pending, pidfd: int) -> None:
        self._loop.on_readable(pidfd, None)
        if not call.requests[pidfd].is_settled:
            call.ended.add(pidfd)

    def _finish_if_settled(self, call: _Pending) -> None:
        if call in self._pending and call.is_settled:
            self._finish(call)

    def _finish(self, call: _Pending) -> None:
        """All answers have come, or the word that there will be none; or the time is over."""
        try:
            members = call.conclude()
            if members is None:
                self._let_go(call)
                return
            line = write_answer(call.asked.op, call.asked.tag, members)
        except MemoryError:
            self._no_memory(sum(len(one.answer.data) for one in call.requests.values() if one.answer is not None))
        except MsgdError as error:
            self._settle(call, write_refusal(call.asked.op, call.asked.tag, error))
        else:
            self._settle(call, line)

    def _settle(self, call: _Pending, line: bytes) -> None:
        self._let_go(call)
        self._reply(line)

    def _let_go(self, call: _Pending) -> None:
        self._pending.remove(call)
        call.timer.cancel()
        call.in_flight.close()
