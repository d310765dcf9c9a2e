# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The calls of one client that wait for their answers.

Rule 1.  A call is a request of the context (messaging/requests.py), so each gets its own answer, and a process of
msgd's that handles no such type says so at once.

Rule 2.  A call ends with its answer, when its time is over, when the process asked has ended, or when the client
cancels it.  Each but the calls of a client that hears no more is answered, once.

Rule 3.  A process may have answered just before it ended, so its end (its pidfd is readable) settles nothing at once.
The context is dispatched until a dispatch handles no message: then whatever the process had sent has been read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from msgd.daemon.loop import Loop, LoopTimer
from msgd.errors import MsgdError, NoSuchProcess, QueueFull, ReplyTimeout
from msgd.messaging import Messaging
from msgd.messaging.requests import PendingRequest
from msgd.wire.gateway.limits import MAX_CALLS
from msgd.wire.gateway.replies import write_answer, write_message, write_refusal
from msgd.wire.gateway.requests import Asked, Call, Tag
from msgd.wire.message_types import type_name

_NEXT_TURN = 0.001
"""Seconds.  With a timeout of 0 an answer counts if it is there when the loop polls next."""


@dataclass(eq=False)
class _PendingCall:
    asked: Asked
    request: Call
    timer: LoopTimer
    pidfd: int
    in_flight: contextlib.ExitStack
    pending: PendingRequest
    has_ended: bool = False
    """Whether the process asked has ended; its last messages may be unread."""


class Calls:
    """The pending calls; `reply` takes the line that answers one, `no_memory` the length of an answer without room."""

    def __init__(
        self, messaging: Messaging, loop: Loop, reply: Callable[[bytes], None], no_memory: Callable[[int], None]
    ) -> None:
        self._messaging = messaging
        self._loop = loop
        self._reply = reply
        self._no_memory = no_memory
        self._pending: list[_PendingCall] = []

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def needs_dispatch(self) -> bool:
        """Whether the context has to be dispatched, readable or not, to settle calls to ended processes (rule 3)."""
        return any(call.has_ended for call in self._pending)

    def start(self, asked: Asked, request: Call) -> None:
        """Send the message and wait for its answer.

        Raises QueueFull for too many calls, and what Messaging.watch() and Messaging.send() raise.
        """
        if len(self._pending) >= MAX_CALLS:
            raise QueueFull(f"{len(self._pending)} calls wait for their answers, which is the limit")
        with contextlib.ExitStack() as in_flight:
            pidfd = self._messaging.watch(request.to)
            in_flight.callback(os.close, pidfd)
            beginning = self._messaging.begin_request(
                request.to, request.type, request.data, request.answer, lambda: self._finish(call)
            )
            pending = in_flight.enter_context(beginning)
            timer = self._loop.call_later(request.timeout or _NEXT_TURN, lambda: self._time_out(call))
            call = _PendingCall(asked, request, timer, pidfd, in_flight.pop_all(), pending)
        self._pending.append(call)
        self._loop.on_readable(pidfd, lambda: self._note_end(call))

    def _finish(self, call: _PendingCall) -> None:
        """The answer has come, or the word that there will be none."""
        try:
            message = call.pending.result()
            line = write_answer(call.asked.op, call.asked.tag, {"answer": write_message(message)})
        except MemoryError:
            assert call.pending.answer is not None
            self._no_memory(len(call.pending.answer.data))
        except MsgdError as error:
            self._refuse(call, error)
        else:
            self._settle(call, line)

    def cancel(self, tag: Tag) -> None:
        """Give up the calls that were asked with this id.  There is none if the answer is on its way already."""
        for call in [call for call in self._pending if call.asked.tag == tag]:
            self._refuse(call, ReplyTimeout("the client has cancelled it"))

    def close(self) -> None:
        """Give up all calls without a word: the client hears no more."""
        while self._pending:
            self._let_go(self._pending[0])

    def after_dispatch(self, handled: int) -> None:
        """The context has been dispatched and has handled so many messages."""
        if not handled:
            for call in [call for call in self._pending if call.has_ended]:
                self._refuse(call, NoSuchProcess("the process ended before it answered"))

    def _note_end(self, call: _PendingCall) -> None:
        self._loop.on_readable(call.pidfd, None)
        call.has_ended = True

    def _time_out(self, call: _PendingCall) -> None:
        to, message_type, _, _, timeout = call.request
        what = type_name(message_type)
        self._refuse(call, ReplyTimeout(f"{to} did not answer {what} within {timeout:g} seconds"))

    def _refuse(self, call: _PendingCall, error: MsgdError) -> None:
        self._settle(call, write_refusal(call.asked.op, call.asked.tag, error))

    def _settle(self, call: _PendingCall, line: bytes) -> None:
        self._let_go(call)
        self._reply(line)

    def _let_go(self, call: _PendingCall) -> None:
        self._pending.remove(call)
        call.timer.cancel()
        self._loop.on_readable(call.pidfd, None)
        call.in_flight.close()
