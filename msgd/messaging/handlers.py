# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Handlers: which function each context runs for which type, and how a message finds them.

Rule 1.  A message goes to the one context with its task id, or to the request in flight that has it.  A broadcast (task
id EVERY_TASK) goes to each context that listens to the class of its type.
Rule 2.  A message that no handler takes is counted and logged as a drop, with the reason.  The sender of a request is
told at once, and so is any process of msgd's whose message is for a context that is gone.
Rule 3.  An Exception from a handler is counted and logged, and the other handlers and the messages behind it run.  A
BaseException that is no Exception (KeyboardInterrupt) comes out of dispatch.
Rule 4.  A message is in the inbox until right before its handlers run.  So an exception that a signal's handler raises
in between loses nothing; at worst a drop is counted twice.
Rule 5.  Descriptors that come with a message are closed after its handlers, but for those that a handler has taken over
with take_fds().
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, MutableSequence
from typing import Any, Protocol

from msgd.drops import Drops
from msgd.errors import MsgdError
from msgd.events import HANDLER_FAILED, fields
from msgd.messaging.descriptors import close_unless_kept, own, with_descriptors
from msgd.messaging.observer import Observer
from msgd.messaging.requests import PendingRequest, Requests
from msgd.native import native
from msgd.presence import Presence
from msgd.wire.header import Message, new_message
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

    __slots__ = ("defaults", "expected", "registered")

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

    def _take_identity(self) -> None:
        """The number of this node has changed, which is part of the address."""

    @property
    def known_tasks(self) -> set[ServerID]:
        """The addresses that it may send to without a check; none once it is closed or forked."""


class _Broadcast:
    """The delivery of a broadcast to the contexts of this process, as far as it has come."""

    def __init__(self, message: Message, contexts: dict[int, ContextView]) -> None:
        kind = message_class(message.type)
        self.message = message
        self.left = [task_id for task_id, context in tuple(contexts.items()) if kind in context.listens]
        """The tasks that are still to have it."""
        self.is_heard = bool(self.left)
        self.is_handled = False


class Delivery:
    """Delivers the messages of one endpoint to its contexts and its requests, and counts them.

    `contexts`: by task id; the endpoint adds and removes them.  `send` is the endpoint's.
    """

    __slots__ = (
        "_broadcast", "_contexts", "_drops", "_only_general", "_only_pubsub", "_pid", "_presence", "_requests",
        "_send", "_unique_ids", "handled", "handler_errors", "observer", "received", "received_bytes",
    )  # fmt: skip

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
        self._broadcast: _Broadcast | None = None
        self._only_general: int | None = None
        self._only_pubsub: int | None = None
        """The task that alone listens to GENERAL, or PUBSUB: such a broadcast is as plain as a message to it."""
        self._drops = drops
        self._presence = presence
        self._pid = presence.pid
        self._unique_ids = frozenset((presence.unique_id, *ANY_UNIQUE_ID))

    def note_listeners(self) -> None:
        """The endpoint calls this when there is another set of contexts, or when they listen to other classes."""
        self._only_general = self._only_one(MessageClass.GENERAL)
        self._only_pubsub = self._only_one(MessageClass.PUBSUB)

    def _only_one(self, kind: MessageClass) -> int | None:
        """The task that listens to the class, if there is exactly one."""
        tasks = [task_id for task_id, context in tuple(self._contexts.items()) if kind in context.listens]
        return tasks[0] if len(tasks) == 1 else None

    def run(self, inbox: deque[Message]) -> None:
        """Deliver what is in the inbox, the oldest first.

        This loop is the fast path of _deliver_to(): no descriptors, no request that expects the type, no observer.  It
        is the fast path of _deliver_to_all() too, where one context alone listens.  On every path a message leaves the
        inbox right before its handler is called, with no call in between: an exception that a signal's handler raises
        finds it in the inbox or in the hands of its handler.  A signal's handler that dispatches may have delivered it
        meanwhile; so the head is looked at again right before.  The compiled twin runs this as far as it goes.
        """
        contexts, unique_ids, own_pid, run_plain = self._contexts, self._unique_ids, self._pid, _run_plain
        while True:
            if run_plain is not None:
                run_plain(self, inbox)
            if not inbox:
                return
            head = message = inbox[0]
            message_type, _, (pid, task_id, _, unique_id), data, fds = message
            if task_id == EVERY_TASK:
                message = self._addressed(message)
                task_id = message.dst.task_id
            context = contexts.get(task_id)
            if context is None or fds or unique_id not in unique_ids or pid != own_pid:
                self._deliver_with_care(inbox, head)
                continue
            table = context.handlers
            handlers = table.registered.get(message_type) or table.defaults.get(message_type)
            if handlers is None or table.expected or self.observer is not None:
                self._deliver_with_care(inbox, head)
                continue
            size = len(data)
            if not inbox or inbox[0] is not head:
                continue
            del inbox[0]
            self.received += 1
            self.received_bytes += size
            self.handled += 1
            for handler in handlers:
                try:
                    handler(message)
                except Exception:
                    self.handler_errors += 1
                    logger.exception("handler for %s", describe(message), extra=failure_fields(message))

    def _addressed(self, broadcast: Message) -> Message:
        """The broadcast as a message to the task that alone listens; unchanged if several do, or none."""
        message_type, src, dst, data, fds = broadcast
        kind = message_class(message_type)
        task_id = self._only_general if kind is MessageClass.GENERAL else None
        if kind is MessageClass.PUBSUB:
            task_id = self._only_pubsub
        if task_id is None or self._broadcast is not None:
            return broadcast
        return new_message(Message, (message_type, src, ServerID(dst.pid, task_id, dst.vnn, dst.unique_id), data, fds))

    def note_failure(self, message: Message, error: Exception) -> None:
        """Count and log what a handler has raised; for the compiled twin of run()."""
        self.handler_errors += 1
        logger.error("handler for %s", describe(message), exc_info=error, extra=failure_fields(message))

    def _deliver_with_care(self, inbox: deque[Message], message: Message) -> None:
        """Deliver the first message: a broadcast, an answer, one with descriptors, or one that is for nobody here."""
        if message.fds:
            message = _own_head(inbox, message)
        pid, task_id, _, unique_id = message.dst
        context = self._contexts.get(task_id)
        try:
            if unique_id not in self._unique_ids or pid != self._pid:
                self._drop("for a process or task that is gone", message)
            elif context is not None:
                if not self._deliver_to(context, message, inbox, message):
                    self._refuse(message, Reason.NO_HANDLER)
            elif task_id == EVERY_TASK:
                self._deliver_to_all(message)
            else:
                self._answer(self._requests.by_task(task_id), message, inbox)
            if inbox and inbox[0] is message:
                del inbox[0]
        finally:
            if not (inbox and inbox[0] is message):
                close_unless_kept(message)

    def _deliver_to(self, context: ContextView, message: Message, queue: MutableSequence[Any], head: object) -> bool:
        """Run the handlers of a context, or settle a request of its that this may be the answer to.

        Removes the `head` of the queue right before; if it is gone, a signal's handler has done all this.  Returns
        False, with the head still there, if the context has no handler for the message, which is a drop.
        """
        table, observer, size = context.handlers, self.observer, len(message.data)
        expected = self._requests.oldest_for(message) if message.type in table.expected else None
        handlers = table.registered.get(message.type) or table.defaults.get(message.type)
        if expected is None and handlers is None:
            self.received += 1
            self.received_bytes += size
            self._drop("of a type without handler", message)
            return False
        if observer is not None:
            observer.received(message)
        if expected is not None:
            expected.settle(answer=message, queue=queue)
            self.received += 1
            self.received_bytes += size
            self.handled += 1
            return True
        began = time.perf_counter()
        if not queue or queue[0] is not head:
            return True  # a signal's handler has dispatched, and delivered it
        del queue[0]
        self.received += 1
        self.received_bytes += size
        self.handled += 1
        for handler in handlers or ():
            try:
                handler(message)
            except Exception:
                self.handler_errors += 1
                logger.exception("handler for %s", describe(message), extra=failure_fields(message))
            finally:
                if observer is not None:
                    observer.handled(message, time.perf_counter() - began)
                    began = time.perf_counter()
        return True

    def _deliver_to_all(self, message: Message) -> None:
        """Deliver a broadcast to each context that listens to its class, as a message to that one.

        An exception may come out between two contexts, and a handler may dispatch.  Both find in `_broadcast` those
        that are still to have the message.
        """
        if self._broadcast is None or self._broadcast.message is not message:
            self._broadcast = _Broadcast(message, self._contexts)
        broadcast = self._broadcast
        if not broadcast.is_heard:
            self._drop("of a class nobody listens to", message)
        while broadcast.left:
            task_id = broadcast.left[0]
            context = self._contexts.get(task_id)
            to_one = message._replace(dst=message.dst._replace(task_id=task_id))
            try:
                is_taken = context is not None and self._deliver_to(context, to_one, broadcast.left, task_id)
            finally:
                broadcast.is_handled |= task_id not in broadcast.left
            if not is_taken:  # an earlier handler has closed the context, or it has no handler for this type
                del broadcast.left[0]
        self._broadcast = None
        if not broadcast.is_handled:
            self._refuse(message, Reason.NO_HANDLER)

    def _answer(self, request: PendingRequest | None, message: Message, queue: MutableSequence[Any]) -> None:
        """Settle the request that the message has come to."""
        self.received += 1
        self.received_bytes += len(message.data)
        if request is not None and request.offer(message, queue):
            self.handled += 1
            if self.observer is not None:
                self.observer.received(message)
        elif message.dst.task_id >= FIRST_REQUEST_TASK:
            self._drop("an answer nobody waits for", message)
        else:
            self._drop("for a process or task that is gone", message)
            self._refuse(message, Reason.NO_TASK)

    def _refuse(self, message: Message, reason: Reason) -> None:
        """Tell the sender of a request that there will be no answer; any process of msgd's that the task is gone.

        A refusal is never refused: two processes would do that to each other for ever.
        """
        is_request = message.src.task_id >= FIRST_REQUEST_TASK
        if message.type == NOT_HANDLED or not (is_request or reason is Reason.NO_TASK):
            return
        src = message.dst._replace(task_id=min(message.dst.task_id, FIRST_REQUEST_TASK - 1))
        try:
            if not is_request:
                if not self._presence.is_here(message.src):
                    return  # it may be one of Samba's as well, and nobody here can tell
                process = self._presence.process(message.src.pid)
                if process is None or not process.is_ours:
                    return  # one of Samba's would log a message of an unknown type
            self._send(message.src, src, NOT_HANDLED, pack_refusal(reason, message.type))
        except MsgdError as error:
            self._drops("an answer nobody takes", str(error), about_it=about(message))

    def _drop(self, reason: str, message: Message) -> None:
        self._drops(reason, describe(message), about_it=about(message))


_run_plain: Callable[[Delivery, deque[Message]], None] | None = (
    None if native is None else native.Deliverer(Delivery, HandlerTable, Message, ServerID).run
)
"""Delivers the messages at the head of an inbox as run() does, as long as they are plain."""


def _own_head(inbox: deque[Message], message: Message) -> Message:
    """Put Descriptors into the message at the head, unless it is another one by now."""
    owning = with_descriptors(message)
    if not inbox or inbox[0] is not message:
        return message
    inbox[0] = owning
    own(owning)
    return owning


def about(message: Message) -> dict[str, object]:
    """The journal's fields for an event that has to do with a message."""
    return {"PEER_PID": message.src.pid, "MESSAGE_TYPE": type_name(message.type)}


def describe(message: Message) -> str:
    """The message in a log line."""
    return f"{type_name(message.type)} from {message.src} to {message.dst}"


def failure_fields(message: Message) -> dict[str, str]:
    """The journal's fields of a handler's failure."""
    return fields(HANDLER_FAILED, **about(message))
