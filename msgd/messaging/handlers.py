# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Handlers: which function each context runs for which type, and how a message finds them.

Rule 1.  A message goes to the one context with its task id; a broadcast (task id EVERY_TASK) goes to each context that
listens to the class of its type.
Rule 2.  A message that no handler takes is counted and logged as a drop, with the reason.
Rule 3.  An Exception from a handler is counted and logged, and the other handlers and the messages behind it run.  A
BaseException that is none (KeyboardInterrupt) is not caught.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from msgd.drops import Drops
from msgd.events import HANDLER_FAILED, fields
from msgd.presence import Presence
from msgd.wire.header import Message
from msgd.wire.message_types import MessageClass, message_class, type_name
from msgd.wire.server_id import ANY_PROCESS, EVERY_TASK

Handler = Callable[[Message], None]

logger = logging.getLogger("msgd")


class HandlerTable:
    """The handlers of one context, by message type, each type's in the order of their registration.

    `defaults` are used for a type that has none registered.
    """

    def __init__(self) -> None:
        self.registered: dict[int, tuple[Handler, ...]] = {}
        self.defaults: dict[int, tuple[Handler, ...]] = {}

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


class Receiver(Protocol):
    """What delivery needs to know of a context."""

    @property
    def listens(self) -> MessageClass:
        """The classes of broadcasts that it wants."""

    @property
    def handlers(self) -> HandlerTable:
        """Its handlers."""


class Delivery:
    """Delivers the messages of one endpoint to its contexts, and counts them.

    `contexts`: by task id; the endpoint adds and removes them.
    """

    def __init__(self, presence: Presence, drops: Drops, contexts: dict[int, Receiver]) -> None:
        self.contexts = contexts
        self.received = self.received_bytes = self.handled = self.handler_errors = 0
        self._drops = drops
        self._pid = presence.pid
        self._unique_ids = frozenset((presence.unique_id, *ANY_PROCESS))

    def deliver(self, message: Message) -> None:
        """Run the handlers of the context that the message is for; one function, since each message passes here."""
        message_type, _, (pid, task_id, _, unique_id), data, _ = message
        context = self.contexts.get(task_id)
        if context is None and task_id == EVERY_TASK:
            self._deliver_to_all(message)
            return
        self.received += 1
        self.received_bytes += len(data)
        if context is None or unique_id not in self._unique_ids or pid != self._pid:
            self._drops("for a process or task that is gone", describe(message), about_it=about(message))
            return
        table = context.handlers
        handlers = table.registered.get(message_type) or table.defaults.get(message_type)
        if handlers is None:
            self._drops("of a type without handler", describe(message), about_it=about(message))
            return
        self.handled += 1
        for handler in handlers:
            try:
                handler(message)
            except Exception:
                self.handler_errors += 1
                extra = fields(HANDLER_FAILED, **about(message))
                logger.exception("handler for %s", describe(message), extra=extra)

    def _deliver_to_all(self, message: Message) -> None:
        """Deliver a broadcast to each context that listens to its class, as a message to that one."""
        kind = message_class(message.type)
        listening = [task_id for task_id, context in self.contexts.items() if kind in context.listens]
        if not listening:
            self._drops("of a class nobody listens to", describe(message), about_it=about(message))
        for task_id in listening:
            if task_id in self.contexts:  # an earlier handler may have closed it
                self.deliver(message._replace(dst=message.dst._replace(task_id=task_id)))


def about(message: Message) -> dict[str, object]:
    """The journal's fields for an event that has to do with a message."""
    return {"PEER_PID": message.src.pid, "MESSAGE_TYPE": type_name(message.type)}


def describe(message: Message) -> str:
    """The message in a log line."""
    return f"{type_name(message.type)} from {message.src} to {message.dst}"
