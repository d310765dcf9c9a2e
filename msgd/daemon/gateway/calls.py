# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The calls of one client that wait for their answers.

Rule 1.  A message answers the oldest call that it can answer: its type is the one asked for, and it comes from the
process that was asked.

Rule 2.  A call ends with its answer, when its time is over, or when the process asked has ended.

Rule 3.  A process may have answered just before it ended, so its end (its pidfd is readable) settles nothing at once.
The context is dispatched until a dispatch handles no message: then whatever the process had sent has been read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from msgd.daemon.gateway.subscriptions import Subscriptions
from msgd.daemon.loop import Loop, LoopTimer
from msgd.errors import MsgdError, NoSuchProcess, QueueFull, ReplyTimeout
from msgd.messaging import Messaging
from msgd.wire.gateway.limits import MAX_CALLS
from msgd.wire.gateway.replies import write_answer, write_message, write_refusal
from msgd.wire.gateway.requests import Asked, Call
from msgd.wire.header import Message
from msgd.wire.message_types import type_name

_NEXT_TURN = 0.001
"""Seconds.  With a timeout of 0 an answer counts if it is there when the loop polls next."""


@dataclass(eq=False)
class _PendingCall:
    asked: Asked
    request: Call
    timer: LoopTimer
    pidfd: int
    has_ended: bool = False
    """Whether the process asked has ended; its last messages may be unread."""


class Calls:
    """The pending calls; `reply` takes the line that answers one."""

    def __init__(
        self, messaging: Messaging, loop: Loop, subscriptions: Subscriptions, reply: Callable[[bytes], None]
    ) -> None:
        self._messaging = messaging
        self._loop = loop
        self._subscriptions = subscriptions
        self._reply = reply
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
        pidfd = self._messaging.watch(request.to)
        try:
            self._messaging.send(request.to, request.type, request.data)
        except MsgdError:
            os.close(pidfd)
            raise
        timer = self._loop.call_later(request.timeout or _NEXT_TURN, lambda: self._time_out(call))
        call = _PendingCall(asked, request, timer, pidfd)
        self._pending.append(call)
        self._loop.on_readable(pidfd, lambda: self._note_end(call))
        self._subscriptions.add(request.answer)

    def answer(self, message: Message) -> bool:
        """Whether the message was the answer to a call."""
        for call in self._pending:
            request = call.request
            if request.answer == message.type and request.to.pid == message.src.pid:
                members = {"answer": write_message(message)}
                self._settle(call, write_answer(call.asked.op, call.asked.tag, members))
                return True
        return False

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
        self._pending.remove(call)
        call.timer.cancel()
        self._loop.on_readable(call.pidfd, None)
        os.close(call.pidfd)
        self._subscriptions.remove(call.request.answer)
        self._reply(line)
