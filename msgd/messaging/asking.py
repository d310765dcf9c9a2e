# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The part of a context that asks: requests to one process, surveys of all."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection, Iterator

from msgd.errors import MsgdError, NoSuchProcess, QueueFull, ReplyTimeout, TransportError
from msgd.messaging.arguments import Data, Destination, Type, data_bytes, message_type_number
from msgd.messaging.border import refusals_documented
from msgd.messaging.endpoint import Endpoint
from msgd.messaging.handlers import HandlerTable
from msgd.messaging.requests import REPLY_TIMEOUT, PendingRequest, reply_type_of
from msgd.messaging.waiting import wait_for_answers
from msgd.messaging.watched import Watched
from msgd.results import SendStatus, Survey
from msgd.wire.header import Message
from msgd.wire.message_types import MessageClass, type_name
from msgd.wire.server_id import ServerID


class Asking:
    """Messaging's requests.  Any number may be in flight, from any threads; each gets its own answer (requests.py).

    Where no other thread dispatches, the one that waits does until its answer is there.
    """

    server_id: ServerID
    listens: MessageClass
    handlers: HandlerTable
    _endpoint: Endpoint

    def _watch_for_answer(self, dst: ServerID) -> int:
        raise NotImplementedError

    def _others(self, message_type: int) -> list[ServerID]:
        raise NotImplementedError

    def _send(
        self,
        dst: ServerID,
        src: ServerID,
        message_type: int,
        data: bytes,
        fds: Collection[int],
        duplicates_allowed: bool,
        timeout: float | None,
    ) -> SendStatus:
        raise NotImplementedError

    @refusals_documented
    def request(
        self,
        dst: Destination,
        message_type: Type,
        data: Data = b"",
        reply_type: Type | None = None,
        timeout: float | None = REPLY_TIMEOUT,
        *,
        fds: Collection[int] = (),
        answer_from_any: bool = False,
    ) -> Message:
        """Send a message, and wait until the destination answers with one of `reply_type`.

        `reply_type` may be left out for Samba's pairs, such as PING and PONG.  `answer_from_any`: another process may
        answer for the one asked, as children of winbindd do.  Descriptors in the answer are the caller's, by
        message.take_fds().

        Raises what send() raises; NoHandler at once if a process of msgd's handles no such type; NoSuchProcess as soon
        as the destination ends; ReplyTimeout after `timeout` seconds; TypeError if no reply_type is known.
        """
        dst = ServerID.of(dst)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        watched = self._watch_for_answer(dst)
        try:
            with self.begin_request(
                dst, message_type, data, reply_type, _nothing, fds=fds, answer_from_any=answer_from_any
            ) as request:
                wait_for_answers(self._endpoint, {watched: request}, deadline)
                if not request.is_settled:
                    raise late(dst, message_type_number(message_type), timeout)
                return request.result()
        finally:
            os.close(watched)

    @contextlib.contextmanager
    def begin_request(
        self,
        dst: Destination,
        message_type: Type,
        data: Data,
        reply_type: Type | None,
        on_settled: Callable[[], None],
        *,
        fds: Collection[int] = (),
        answer_from_any: bool = False,
    ) -> Iterator[PendingRequest]:
        """Send a request and have it in flight inside: for event loops, which must not wait in request().

        `on_settled` is called when the answer has come, or the word that there will be none; then result() returns or
        raises it.  The caller watches the process asked, keeps the deadline, and has the loop dispatch.  Raises what
        send() raises.
        """
        dst, number, packed = ServerID.of(dst), message_type_number(message_type), data_bytes(data)
        reply = reply_type_of(number, None if reply_type is None else message_type_number(reply_type))
        endpoint, expected = self._endpoint, self.handlers
        with endpoint.lock:
            request = endpoint.requests.open(self.server_id, dst, reply, on_settled, answer_from_any=answer_from_any)
            expected.expect(reply)
        try:
            self._send(dst, self.server_id._replace(task_id=request.task_id), number, packed, fds, True, 0)
            yield request
        finally:
            with endpoint.lock:
                endpoint.requests.close(request)
                expected.expect_no_more(reply)

    @refusals_documented
    def survey(
        self,
        message_type: Type,
        data: Data = b"",
        reply_type: Type | None = None,
        timeout: float | None = REPLY_TIMEOUT,
    ) -> Survey:
        """Ask every other living process that listens to the type's class: the answers, and why others gave none.

        Returns when each has answered, refused or ended, and after `timeout` seconds at the latest.
        """
        number = message_type_number(message_type)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        asked: dict[int, PendingRequest] = {}
        failures: dict[int, MsgdError] = {}
        with Watched() as watched, contextlib.ExitStack() as in_flight:
            for dst in self._others(number):
                try:
                    pidfd = watched.pidfd(dst, self._watch_for_answer)
                    beginning = self.begin_request(dst, number, data, reply_type, _nothing)
                    asked[pidfd] = in_flight.enter_context(beginning)
                except (NoSuchProcess, QueueFull, TransportError) as error:
                    failures[dst.pid] = error
            wait_for_answers(self._endpoint, asked, deadline, watched)
        answers: dict[int, Message] = {}
        for request in asked.values():
            if request.answer is not None:
                answers[request.dst.pid] = request.answer
            else:
                failures[request.dst.pid] = request.error or late(request.dst, number, timeout)
        return Survey(answers, failures)


def late(dst: ServerID, message_type: int, timeout: float | None) -> ReplyTimeout:
    """The error of a request that was not answered in time."""
    text = f"{dst} did not answer {type_name(message_type)} within {timeout:g} seconds"
    return ReplyTimeout(text, dst=dst, message_type=message_type)


def _nothing() -> None:
    """Called when a request is settled for which a thread waits: each round of dispatch wakes that in any case."""
