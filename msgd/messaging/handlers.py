# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Handlers: which function each context runs for which type, and how a message finds them.

Rule 1.  A message goes to the one context with its task id, or to the request in flight that has it.  A broadcast (task
id EVERY_TASK) goes to each context that listens to the class of its type.
Rule 2.  A message that no handler takes is counted and logged as a drop, with the reason; if it is a request of msgd's,
its sender is told at once.
Rule 3.  An Exception from a handler is counted and logged, and the other handlers and the messages behind it run.  A
BaseException that is no Exception (KeyboardInterrupt) comes out of dispatch.
Rule 4.  Descriptors that come with a message are closed after its handlers, but for those that a handler has taken over
with take_fds().
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from msgd.drops import Drops
from msgd.errors import MsgdError
from msgd.events import HANDLER_FAILED, fields
from msgd.messaging.descriptors import own_fds
from msgd.messaging.observer import Observer
from msgd.messaging.requests import PendingRequest, Requests
from msgd.presence import Presence
from msgd.wire.header import Message
from msgd.wire.message_types import MessageClass, message_class, type_name
from msgd.wire.refusal import FIRST_REQUEST_TASK, NOT_HANDLED, Reason, pack_refusal
from msgd.wire.server_id import ANY_UNIQUE_ID, EVERY_TASK, ServerID

Handler = Callable[[Message], object]
"""Called with the message; what it returns is ignored."""

logger = logging.getLogger("msgd")


class HandlerTable:
    """The handlers of one context, by message type, each type's in the order of their registration.

    `defaults` are used for a type that has none registered.  `expected` counts the requests of the context that wait
    for an answer of the type.  Tuples are replaced and never changed: a delivery that is running in another thread goes
    on with those that it has found.
    """

    def __init__(self) -> None:
        self.registered: dict[int, tuple[Handler, ...]] = {}
        self.defaults: dict[int, tuple[Handler, ...]] = {}
        self.expected: Counter[int] = Counter()

    def add(self, message_type: int, handler: Handler) -> None:
        """Add a handler behind the type's others."""
        self.registered[message_type] = (*self.registered.get(message_type, ()), handler)

    def remove(self, message_type: int, handler: Handler | None) -> None:
        """Remove a handler of the type (None: all of them); one that is not there does no harm."""
        left = tuple(one for one in self.registered.get(message_type, ()) if handler is not None and one != handler)
        if left:
            self.registered[message_type] = left
        else:
            self.registered.pop(message_type, None)

    def remove_one(self, message_type: int, handler: Handler) -> None:
        """Remove one registration of a handler, and leave others of the same."""
        left = list(self.registered.get(message_type, ()))
        if handler in left:
            left.remove(handler)
        if left:
            self.registered[message_type] = tuple(left)
        else:
            self.registered.pop(message_type, None)

    def expect(self, reply_type: int) -> None:
        """One more request waits for an answer of the type."""
        self.expected[reply_type] += 1

    def expect_no_more(self, reply_type: int) -> None:
        """One request no longer waits for it."""
        self.expected[reply_type] -= 1
        if not self.expected[reply_type]:
            del self.expected[reply_type]


class ContextView(Protocol):
    """What delivery needs to know of a context."""

    @property
    def server_id(self) -> ServerID:
        """Its address."""

    @property
    def listens(self) -> MessageClass:
        """The classes of broadcasts that it wants."""

    @property
    def handlers(self) -> HandlerTable:
        """Its handlers."""


class Delivery:
    """Delivers the messages of one endpoint to its contexts and its requests, and counts them.

    `contexts`: by task id; the endpoint adds and removes them.  `send` is the endpoint's.
    """

    def __init__(
        self,
        presence: Presence,
        drops: Drops,
        contexts: dict[int, ContextView],
        requests: Requests,
        send: Callable[[ServerID, ServerID, int, bytes], object],
    ) -> None:
        self.received = self.received_bytes = self.handled = self.handler_errors = 0
        self.observer: Observer | None = None
        self._contexts = contexts
        self._requests = requests
        self._send = send
        self._drops = drops
        self._pid = presence.pid
        self._unique_ids = frozenset((presence.unique_id, *ANY_UNIQUE_ID))

    def run(self, inbox: deque[Message]) -> None:
        """Deliver what is in the inbox, the oldest first.

        This loop is the fast path of _deliver_to(): no descriptors, no request that expects the type, no observer.  In
        it a message leaves the inbox right before its handler is called, with no call in between: an exception that a
        signal's handler raises finds it in the inbox or in the hands of its handler.  On the other paths a few calls
        lie in between.
        """
        contexts, unique_ids, own_pid = self._contexts, self._unique_ids, self._pid
        while inbox:
            message = inbox[0]
            message_type, _, (pid, task_id, _, unique_id), data, fds = message
            context = contexts.get(task_id)
            if context is None or fds or unique_id not in unique_ids or pid != own_pid:
                del inbox[0]
                self._deliver_with_care(message)
                continue
            table = context.handlers
            handlers = table.registered.get(message_type) or table.defaults.get(message_type)
            if handlers is None or table.expected or self.observer is not None:
                del inbox[0]
                if not self._deliver_to(context, message):
                    self._refuse_request(message, Reason.NO_HANDLER)
                continue
            self.received += 1
            self.received_bytes += len(data)
            self.handled += 1
            del inbox[0]
            for handler in handlers:
                try:
                    handler(message)
                except Exception:
                    self.handler_errors += 1
                    logger.exception("handler for %s", describe(message), extra=failure_fields(message))

    def _deliver_with_care(self, message: Message) -> None:
        """Deliver a broadcast, an answer, a message with descriptors, or one that is for nobody here."""
        message, fds = own_fds(message)
        _, _, (pid, task_id, _, unique_id), _, _ = message
        context = self._contexts.get(task_id)
        try:
            if unique_id not in self._unique_ids or pid != self._pid:
                self._drop("for a process or task that is gone", message)
            elif context is not None:
                if not self._deliver_to(context, message):
                    self._refuse_request(message, Reason.NO_HANDLER)
            elif task_id == EVERY_TASK:
                self._deliver_to_all(message)
            else:
                self._answer(self._requests.by_task(task_id), message)
        finally:
            fds.close()

    def _deliver_to(self, context: ContextView, message: Message) -> bool:
        """Run the handlers of a context, or settle a request of its that this may be the answer to.

        Returns False if the context has no handler for the message, which is a drop.
        """
        self.received += 1
        self.received_bytes += len(message.data)
        table = context.handlers
        expected = self._requests.oldest_for(message) if message.type in table.expected else None
        if expected is not None:
            self.handled += 1
            if self.observer is not None:
                self.observer.received(message)
            expected.settle(answer=own_fds(message)[0])
            return True
        handlers = table.registered.get(message.type) or table.defaults.get(message.type)
        if handlers is None:
            self._drop("of a type without handler", message)
            return False
        self.handled += 1
        if self.observer is not None:
            self.observer.received(message)
        for handler in handlers:
            began = time.perf_counter()
            try:
                handler(message)
            except Exception:
                self.handler_errors += 1
                logger.exception("handler for %s", describe(message), extra=failure_fields(message))
            finally:
                if self.observer is not None:
                    self.observer.handled(message, time.perf_counter() - began)
        return True

    def _deliver_to_all(self, message: Message) -> None:
        """Deliver a broadcast to each context that listens to its class, as a message to that one."""
        kind = message_class(message.type)
        listening = [task_id for task_id, context in tuple(self._contexts.items()) if kind in context.listens]
        if not listening:
            self._drop("of a class nobody listens to", message)
        is_handled = False
        for task_id in listening:
            context = self._contexts.get(task_id)
            if context is not None:  # an earlier handler may have closed it
                is_handled |= self._deliver_to(context, message._replace(dst=message.dst._replace(task_id=task_id)))
        if not is_handled:
            self._refuse_request(message, Reason.NO_HANDLER)

    def _answer(self, request: PendingRequest | None, message: Message) -> None:
        """Settle the request that the message has come to."""
        self.received += 1
        self.received_bytes += len(message.data)
        if request is not None and request.offer(own_fds(message)[0]):
            self.handled += 1
            if self.observer is not None:
                self.observer.received(message)
        elif message.dst.task_id >= FIRST_REQUEST_TASK:
            self._drop("an answer nobody waits for", message)
        else:
            self._drop("for a process or task that is gone", message)
            self._refuse_request(message, Reason.NO_TASK)

    def _refuse_request(self, message: Message, reason: Reason) -> None:
        """Tell the sender of a request at once that there will be no answer."""
        if message.src.task_id < FIRST_REQUEST_TASK:
            return
        src = message.dst._replace(task_id=min(message.dst.task_id, FIRST_REQUEST_TASK - 1))
        try:
            self._send(message.src, src, NOT_HANDLED, pack_refusal(reason, message.type))
        except MsgdError as error:
            self._drops("an answer nobody takes", str(error), about_it=about(message))

    def _drop(self, reason: str, message: Message) -> None:
        self._drops(reason, describe(message), about_it=about(message))


def about(message: Message) -> dict[str, object]:
    """The journal's fields for an event that has to do with a message."""
    return {"PEER_PID": message.src.pid, "MESSAGE_TYPE": type_name(message.type)}


def describe(message: Message) -> str:
    """The message in a log line."""
    return f"{type_name(message.type)} from {message.src} to {message.dst}"


def failure_fields(message: Message) -> dict[str, str]:
    """The journal's fields of a handler's failure."""
    return fields(HANDLER_FAILED, **about(message))
