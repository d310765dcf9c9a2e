# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What a client asks for, done with the messaging context of its connection process.  No I/O of the client's.

Rule 1.  Nothing here waits.  A request is answered at once, by a line in the outbox, but for two kinds: what asks other
processes waits among the Calls, and a `send` with a timeout whose receiver's queue is full is held.

Rule 2.  While a `send` is held (the state's HOLD), the connection hands over no further request, so requests and
their answers stay in order.  Each dispatch tries the send again; when its time is over it is tried for the last time.
Either way it is answered and the state is told RELEASE.

Rule 3.  No line joins the outbox behind the last word.  Messages that come after it are for nobody: the types are no
longer registered, so they are the drop `of a type without handler`, and a process of msgd's that asks is told so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from msgd import _registry
from msgd.daemon.gateway.calls import Calls
from msgd.daemon.gateway.outbox import Outbox
from msgd.daemon.gateway.peer import Peer
from msgd.daemon.gateway.permission import SendPermission
from msgd.daemon.gateway.state import ConnectionState, Event
from msgd.daemon.gateway.topics import Topics
from msgd.daemon.loop import Loop, LoopTimer
from msgd.daemon.settings import Settings
from msgd.errors import MsgdError, QueueFull
from msgd.events import CONNECTION_FAILED, fields
from msgd.messaging import Messaging
from msgd.wire.gateway.limits import MAX_CALLS, MAX_TYPES, PROTOCOL
from msgd.wire.gateway.replies import FAILED, error_code, write_answer, write_bye, write_event, write_refusal
from msgd.wire.gateway.requests import (
    Asked,
    BadRequest,
    Call,
    Cancel,
    Deregister,
    Hello,
    ListTopics,
    Names,
    Ping,
    Publish,
    Register,
    Send,
    SendAll,
    Subscribe,
    Unsubscribe,
    read_request,
)
from msgd.wire.header import Message
from msgd.wire.pubsub import ASK, PUBLISH

logger = logging.getLogger("msgd.daemon")


class _HeldSend(NamedTuple):
    """A `send` that waits for room in its receiver's queue until its timer calls."""

    asked: Asked
    request: Send
    timer: LoopTimer


class Session:
    """The requests of one client and the lines it is told; they go to `outbox`, what happens goes to `state`."""

    def __init__(
        self,
        messaging: Messaging,
        loop: Loop,
        settings: Settings,
        peer: Peer,
        outbox: Outbox,
        state: ConnectionState,
    ) -> None:
        self._messaging = messaging
        self._loop = loop
        self._settings = settings
        self._peer = peer
        self._outbox = outbox
        self._state = state
        self._permission = SendPermission(peer, settings)
        self._calls = Calls(messaging, loop, self._say, self._no_memory)
        self._topics = Topics(messaging.config, loop, self._say, self._no_memory)
        self._registered: set[int] = set()
        self._held: _HeldSend | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the client waits for an answer, or is registered for messages."""
        return bool(self._held or len(self._calls) or self._registered or len(self._topics))

    @property
    def needs_dispatch(self) -> bool:
        """Whether dispatch() is due though the context's descriptor may not be readable."""
        return self._calls.needs_dispatch

    def handle(self, line: bytes) -> None:
        """Do what a line asks for."""
        try:
            asked = read_request(line)
        except BadRequest as error:
            self._say(write_refusal(error.op, error.tag, error))
            return
        try:
            answer = self._do(asked)
        except MsgdError as error:
            self._say(write_refusal(asked.op, asked.tag, error))
        else:
            if answer is not None:
                self._say(write_answer(asked.op, asked.tag, answer))

    def dispatch(self) -> None:
        """Take in the messages that are there, try a held send again, and settle the calls to ended processes."""
        handled = self._messaging.dispatch()
        if self._held is not None:
            self._try_held(self._held, is_last=False)
        self._calls.after_dispatch(handled)

    def say_bye(self, code: str, text: str) -> None:
        """Say the last word, if it has not been said."""
        if self._state.may_say:
            self._say(write_bye(code, text))
            self._state.why = text
            self._state.on(Event.BYE)
            self._hear_no_more()
            logger.debug("the last word to %s is %s: %s", self._peer, code, text)

    def _hear_no_more(self) -> None:
        """The client is told nothing more: what is sent to it from now on is counted and logged as a drop."""
        self._deregister(tuple(self._registered))
        self._calls.close()
        self._topics.close()

    def close(self) -> None:
        """The connection has ended."""
        self._topics.close()

    def _say(self, line: bytes) -> None:
        if self._state.may_say:
            self._outbox.append(line)

    # Requests

    def _do(self, asked: Asked) -> Mapping[str, object] | None:
        """The members of the answer; None if the answer comes later.  A MsgdError refuses the request."""
        match asked.request:
            case Hello():
                return self._hello()
            case Send():
                return self._send(asked, asked.request)
            case SendAll(message_type, data):
                self._permission.check(message_type)
                delivered = self._messaging.send_all(message_type, data)
                failures = {str(pid): error_code(error) for pid, error in delivered.failures.items()}
                return {"delivered": delivered.delivered, "failures": failures}
            case Register(types):
                return self._register(types)
            case Deregister(types):
                return self._deregister(types)
            case Call():
                self._permission.check(asked.request.type)
                self._calls.start(asked, asked.request)
                return None
            case Cancel(tag):
                self._calls.cancel(tag)
                return {}
            case Publish(topic, data, is_acknowledged):
                self._permission.check(PUBLISH)
                if not is_acknowledged:
                    return self._topics.publish(topic, data)
                self._topics.publish_acked(asked, asked.request, self._calls)
                return None
            case ListTopics():
                self._permission.check(ASK)
                self._topics.list(asked, asked.request, self._messaging, self._calls)
                return None
            case Subscribe(topics):
                return self._topics.subscribe(topics)
            case Unsubscribe(topics):
                return self._topics.unsubscribe(topics)
            case Names():
                return {
                    "processes": [f"{pid}/{unique}" for pid, unique, *_ in self._messaging.processes()],
                    "names": {name: [str(one) for one in ids] for name, ids in self._messaging.names().items()},
                }
            case Ping():
                return {}

    def _hello(self) -> Mapping[str, object]:
        config = self._settings.config
        return {
            "server_id": str(self._messaging.server_id),
            "version": _registry.VERSION,
            "backend": self._messaging.config.messaging_type,
            "protocol": PROTOCOL,
            "limits": {
                "line_bytes": config.client_line_bytes,
                "message_bytes": config.max_message_size,
                "idle_seconds": config.client_idle_timeout,
                "calls": MAX_CALLS,
                "types": MAX_TYPES,
            },
        }

    def _send(self, asked: Asked, request: Send) -> Mapping[str, object] | None:
        self._permission.check(request.type)
        try:
            return {"status": self._messaging.send(request.to, request.type, request.data).value}
        except QueueFull:
            if not request.timeout:
                raise
        timer = self._loop.call_later(request.timeout, lambda: self._try_held(held, is_last=True))
        self._held = held = _HeldSend(asked, request, timer)
        self._state.on(Event.HOLD)
        return None

    def _try_held(self, held: _HeldSend, *, is_last: bool) -> None:
        asked, request = held.asked, held.request
        try:
            status = self._messaging.send(request.to, request.type, request.data)
        except MsgdError as error:
            if isinstance(error, QueueFull) and not is_last:
                return
            line = write_refusal(asked.op, asked.tag, error)
        else:
            line = write_answer(asked.op, asked.tag, {"status": status.value})
        held.timer.cancel()
        self._held = None
        self._say(line)
        self._state.on(Event.RELEASE)

    def _register(self, types: tuple[int, ...]) -> Mapping[str, object]:
        new = set(types) - self._registered
        if len(self._registered) + len(new) > MAX_TYPES:
            raise QueueFull(f"a client may be registered for {MAX_TYPES} types at most")
        for message_type in new:
            self._messaging.register(message_type, self._receive)
        self._registered |= new
        return {}

    def _deregister(self, types: tuple[int, ...]) -> Mapping[str, object]:
        for message_type in self._registered.intersection(types):
            self._registered.discard(message_type)
            self._messaging.deregister(message_type, self._receive)
        return {}

    # Messages

    def _receive(self, message: Message) -> None:
        """Handle a message.  The context logs what a handler raises; running out of memory must not end there."""
        try:
            self._say(write_event(message))
        except MemoryError:
            self._no_memory(len(message.data))

    def _no_memory(self, length: int) -> None:
        text = f"no memory for a message of {length} bytes (msgd:client memory)"
        logger.error("the connection of %s: %s", self._peer, text, extra=fields(CONNECTION_FAILED, **self._peer.fields))
        self.say_bye(FAILED, text)
