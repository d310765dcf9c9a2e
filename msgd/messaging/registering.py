# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The part of a context that registers handlers, and the handle on one that register() returns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar, overload

from msgd.messaging.arguments import Type, check_handler, message_type_number
from msgd.messaging.endpoint import Endpoint
from msgd.messaging.handlers import Handler, HandlerTable
from msgd.messaging.observer import Observer

H = TypeVar("H", bound=Handler)


class Registration:
    """One registered handler; close() ends it, and so does leaving it as a context manager."""

    def __init__(self, table: HandlerTable, lock: threading.RLock, message_type: int, handler: Handler) -> None:
        self._table = table
        self._lock = lock
        self._is_closed = False
        self.message_type = message_type
        self.handler = handler

    def close(self) -> None:
        """Call the handler no more.  A second call does nothing."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._table.remove_one(self.message_type, self.handler)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Registering:
    """Messaging's handlers and its observer."""

    handlers: HandlerTable
    _endpoint: Endpoint

    def _check_usable(self) -> None:
        raise NotImplementedError

    @overload
    def register(self, message_type: Type, handler: Handler) -> Registration: ...
    @overload
    def register(self, message_type: Type) -> Callable[[H], H]: ...
    def register(self, message_type: Type, handler: Handler | None = None) -> Registration | Callable[[H], H]:
        """Call `handler(message)` for each message of the type; several handlers of a type run in this order.

        Returns a handle, whose close() ends it.  Without a handler it is a decorator: `@messaging.register(TYPE)`.

        A PING is answered by the context itself as long as no handler is registered for it.  What a handler raises is
        logged with the type and does not stop the others.  A message's descriptors are closed after its handlers unless
        one has called message.take_fds().  TypeError for an `async def`: it would never run.
        """
        number = message_type_number(message_type)
        if handler is None:

            def decorate(function: H) -> H:
                self.register(number, function)
                return function

            return decorate
        check_handler(handler)
        with self._endpoint.lock:
            self._check_usable()
            self.handlers.add(number, handler)
        return Registration(self.handlers, self._endpoint.lock, number, handler)

    def deregister(self, message_type: Type, handler: Handler | None = None) -> None:
        """Call `handler` (None: any of the type's) no longer."""
        number = message_type_number(message_type)
        with self._endpoint.lock:
            self._check_usable()
            self.handlers.remove(number, handler)

    def observe(self, observer: Observer | None) -> Observer | None:
        """Let the observer (None: nobody) see what goes through the endpoint from now on; returns the one before."""
        with self._endpoint.lock:
            self._check_usable()
            before = self._endpoint.observer
            self._endpoint.observe(observer)
        return before
