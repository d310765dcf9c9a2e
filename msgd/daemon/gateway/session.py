"""What a client asks for, done with the messaging context of its connection process.

Nothing here waits.  A `call` is kept until its answer comes, its time is over, or the process asked has ended (a
pidfd tells; what that process sent before is read first).  A `send` with a time limit that finds the receiver's queue
full is kept, and until it is decided no further request is looked at: they stay in order.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from msgd import _registry
from msgd.daemon.loop import Loop, LoopTimer
from msgd.errors import MsgdError, NoSuchProcess, NotAllowed, QueueFull, ReplyTimeout
from msgd.messaging import Messaging
from msgd.wire.gateway.replies import error_code, write_answer, write_event, write_message, write_refusal
from msgd.wire.gateway.requests import (
    MAX_TYPES,
    Asked,
    BadRequest,
    Call,
    Deregister,
    Hello,
    Names,
    Ping,
    Register,
    Send,
    SendAll,
    read_request,
)
from msgd.wire.header import Message
from msgd.wire.message_types import type_name

PROTOCOL = 1
"""Grows when a client that keeps to docs/gateway.md could be misled."""

MAX_CALLS = 64
"""Calls of one client that wait for their answers."""

_AT_ONCE = 0.001
"""Seconds.  A time limit of 0: what is not there when the loop comes round is late."""


class _Parked(NamedTuple):
    """A message that waits for room in its receiver's queue."""

    asked: Asked
    request: Send
    timer: LoopTimer


@dataclass(eq=False)
class _PendingCall:
    """A call that waits for its answer."""

    asked: Asked
    request: Call
    timer: LoopTimer
    pidfd: int
    ended: bool = False
    """Whether the process asked has ended; what it had sent may not be read yet."""


class Session:
    """One client's requests and events.

    `may_send` says which types the client may send, `emit` takes lines for it, `limits` are what it is told of its
    bounds.  `dispatch` is called when the context should be looked after at once; whoever has dispatched tells by
    after_dispatch().  `fail` ends the connection.
    """

    def __init__(
        self,
        messaging: Messaging,
        loop: Loop,
        may_send: Callable[[int], bool],
        emit: Callable[[bytes], None],
        dispatch: Callable[[], None],
        fail: Callable[[str], None],
        limits: Callable[[], Mapping[str, object]],
    ) -> None:
        self._messaging = messaging
        self._loop = loop
        self._may_send = may_send
        self._emit = emit
        self._dispatch = dispatch
        self._fail = fail
        self._limits = limits
        self._registered: set[int] = set()
        self._listening: Counter[int] = Counter()
        self._calls: list[_PendingCall] = []
        self._parked: _Parked | None = None

    @property
    def is_blocked(self) -> bool:
        """Whether a request has to be decided before the next is looked at."""
        return self._parked is not None

    @property
    def is_pending(self) -> bool:
        """Whether there are requests yet to be answered."""
        return self._parked is not None or bool(self._calls)

    @property
    def is_listening(self) -> bool:
        """Whether the client has registered for messages."""
        return bool(self._registered)

    def handle(self, line: bytes) -> None:
        """Do what a line asks for, or answer what is wrong with it."""
        try:
            asked = read_request(line)
        except BadRequest as error:
            self._emit(write_refusal(error.op, error.tag, error))
            return
        try:
            answer = self._do(asked)
        except MsgdError as error:
            self._emit(write_refusal(asked.op, asked.tag, error))
        else:
            if answer is not None:
                self._emit(write_answer(asked.op, asked.tag, answer))

    def after_dispatch(self, handled: int) -> bool:
        """The context has dispatched: there may be room, and the dead are gone; whether it is to dispatch again."""
        if self._parked is not None:
            self._try_parked(self._parked, is_last=False)
        ended = [call for call in self._calls if call.ended]
        if not handled:
            for call in ended:
                self._refuse_call(call, NoSuchProcess("the process ended before it answered"))
        return bool(handled and ended)

    def _do(self, asked: Asked) -> Mapping[str, object] | None:
        """The members of the answer; None if it comes later.  MsgdError if it is a refusal."""
        match asked.request:
            case Hello():
                return {
                    "server_id": str(self._messaging.server_id),
                    "version": _registry.VERSION,
                    "backend": self._messaging.config.messaging_type,
                    "protocol": PROTOCOL,
                    "limits": self._limits(),
                }
            case Send():
                return self._send(asked, asked.request)
            case SendAll(message_type, data):
                self._check_allowed(message_type)
                delivered = self._messaging.send_all(message_type, data)
                failures = {str(pid): error_code(error) for pid, error in delivered.failures.items()}
                return {"delivered": int(delivered), "failures": failures}
            case Register(types):
                return self._register(types)
            case Deregister(types):
                for message_type in self._registered.intersection(types):
                    self._registered.discard(message_type)
                    self._unlisten(message_type)
                return {}
            case Call():
                self._call(asked, asked.request)
                return None
            case Names():
                return {
                    "processes": [f"{pid}/{unique}" for pid, unique, *_ in self._messaging.processes()],
                    "names": {name: [str(one) for one in ids] for name, ids in self._messaging.names().items()},
                }
            case Ping():
                return {}

    def _check_allowed(self, message_type: int) -> None:
        if not self._may_send(message_type):
            raise NotAllowed(f"{type_name(message_type)} may not be sent by this user; msgd:allow types says which may")

    # Sending

    def _send(self, asked: Asked, request: Send) -> Mapping[str, object] | None:
        self._check_allowed(request.type)
        try:
            return {"status": self._messaging.send(request.to, request.type, request.data).value}
        except QueueFull:
            if not request.timeout:
                raise
        parked = _Parked(asked, request, self._loop.call_later(request.timeout, lambda: self._give_up(parked)))
        self._parked = parked
        return None

    def _give_up(self, parked: _Parked) -> None:
        self._try_parked(parked, is_last=True)
        self._dispatch()  # requests may have waited behind it

    def _try_parked(self, parked: _Parked, *, is_last: bool) -> None:
        asked, request = parked.asked, parked.request
        try:
            status = self._messaging.send(request.to, request.type, request.data)
        except MsgdError as error:
            if isinstance(error, QueueFull) and not is_last:
                return
            line = write_refusal(asked.op, asked.tag, error)
        else:
            line = write_answer(asked.op, asked.tag, {"status": status.value})
        parked.timer.cancel()
        self._parked = None
        self._emit(line)

    # Calls

    def _call(self, asked: Asked, request: Call) -> None:
        self._check_allowed(request.type)
        if len(self._calls) >= MAX_CALLS:
            raise QueueFull(f"{len(self._calls)} calls wait for their answers; no more than that may")
        watched = self._messaging.watch(request.to)
        try:
            self._messaging.send(request.to, request.type, request.data)
        except MsgdError:
            os.close(watched)
            raise
        timer = self._loop.call_later(request.timeout or _AT_ONCE, lambda: self._late(call))
        call = _PendingCall(asked, request, timer, watched)
        self._calls.append(call)
        self._loop.on_readable(watched, lambda: self._asked_has_ended(call))
        self._listen(request.answer)

    def _asked_has_ended(self, call: _PendingCall) -> None:
        self._loop.on_readable(call.pidfd, None)
        call.ended = True
        self._dispatch()

    def _late(self, call: _PendingCall) -> None:
        to, message_type, _, _, timeout = call.request
        self._refuse_call(
            call, ReplyTimeout(f"{to} did not answer {type_name(message_type)} within {timeout:g} seconds")
        )

    def _refuse_call(self, call: _PendingCall, error: MsgdError) -> None:
        self._settle_call(call, write_refusal(call.asked.op, call.asked.tag, error))

    def _settle_call(self, call: _PendingCall, line: bytes) -> None:
        self._calls.remove(call)
        call.timer.cancel()
        self._loop.on_readable(call.pidfd, None)
        os.close(call.pidfd)
        self._unlisten(call.request.answer)
        self._emit(line)

    # Receiving

    def _register(self, types: tuple[int, ...]) -> Mapping[str, object]:
        new = set(types) - self._registered
        if len(self._registered) + len(new) > MAX_TYPES:
            raise QueueFull(f"no client is registered for more than {MAX_TYPES} types")
        for message_type in new:
            self._listen(message_type)
        self._registered |= new
        return {}

    def _listen(self, message_type: int) -> None:
        self._listening[message_type] += 1
        if self._listening[message_type] == 1:
            self._messaging.register(message_type, self._receive)

    def _unlisten(self, message_type: int) -> None:
        self._listening[message_type] -= 1
        if not self._listening[message_type]:
            del self._listening[message_type]
            self._messaging.deregister(message_type, self._receive)

    def _receive(self, message: Message) -> None:
        """Handle a message; the one error that must not end as a line in the log is that there is no room for it."""
        try:
            self._hand_on(message)
        except MemoryError:
            self._fail(f"no memory for a message of {len(message.data)} bytes (msgd:client memory)")

    def _hand_on(self, message: Message) -> None:
        """A message is the answer to the oldest call it can be the answer to, else it is an event."""
        for call in self._calls:
            request = call.request
            if request.answer == message.type and request.to.pid == message.src.pid:
                answer = {"answer": write_message(message)}
                self._settle_call(call, write_answer(call.asked.op, call.asked.tag, answer))
                return
        if message.type in self._registered:
            self._emit(write_event(message))
