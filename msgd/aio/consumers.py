# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What takes messages in an event loop: handlers, plain and `async def`, and inboxes to iterate over.

Rule 1.  They run in the loop of their context, whatever thread dispatches.
Rule 2.  Messages are taken in the order in which they came.  At most `concurrency` calls of an `async def` handler run
at a time; the others wait their turn.
Rule 3.  Descriptors belong to the message until its handler has returned, or the loop body that has got it goes on.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from msgd.aio.driver import Driver, Loop
from msgd.messaging.descriptors import Descriptors, own_fds
from msgd.messaging.handlers import describe, failure_fields
from msgd.wire.header import Message

logger = logging.getLogger("msgd")

BACKLOG_MAX = 1000
"""Messages that wait for a handler or in an inbox before the driver pauses."""


class Backlog:
    """The messages that wait for one consumer; the driver pauses while there are too many."""

    def __init__(self, driver: Driver, most: int) -> None:
        self._driver = driver
        self._most = most
        self._messages: deque[tuple[Message, Descriptors]] = deque()
        self._is_full = False

    def __len__(self) -> int:
        return len(self._messages)

    def append(self, message: Message, fds: Descriptors) -> None:
        """Add a message behind the others."""
        self._messages.append((message, fds))
        if not self._is_full and len(self._messages) >= self._most:
            self._is_full = True
            self._driver.pause()

    def popleft(self) -> tuple[Message, Descriptors]:
        """The oldest message."""
        oldest = self._messages.popleft()
        if self._is_full and len(self._messages) <= self._most // 2:
            self._is_full = False
            self._driver.resume()
        return oldest

    def clear(self) -> int:
        """Give all up and close their descriptors; how many there were."""
        number = len(self._messages)
        while self._messages:
            self.popleft()[1].close()
        return number


class LoopHandler:
    """A handler that runs in its context's loop.  Calling it takes a message over from the thread that dispatches."""

    def __init__(
        self,
        loop: Loop,
        driver: Driver,
        handler: Callable[[Message], Any],
        concurrency: int,
        count_error: Callable[[], None],
    ) -> None:
        self.handler = handler
        self._loop = loop
        self._thread = threading.get_ident()
        self._is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004
        )
        self._concurrency = concurrency
        self._count_error = count_error
        self._backlog = Backlog(driver, BACKLOG_MAX)
        self._running: set[asyncio.Task[None]] = set()

    def __call__(self, message: Message) -> None:
        if threading.get_ident() == self._thread:
            if self._is_async:
                self._take(*own_fds(message))
            else:
                self.handler(message)
        else:
            self._loop.call_soon_threadsafe(self._take, *own_fds(message))

    def _take(self, message: Message, fds: Descriptors) -> None:
        if not self._is_async:
            try:
                self.handler(message)
            except Exception:
                self._count_error()
                logger.exception("handler for %s", describe(message), extra=failure_fields(message))
            finally:
                fds.close()
        elif len(self._running) < self._concurrency and not self._backlog:
            self._start(message, fds)
        else:
            self._backlog.append(message, fds)

    def _start(self, message: Message, fds: Descriptors) -> None:
        task = self._loop.create_task(self._run(message, fds))
        self._running.add(task)
        task.add_done_callback(self._has_ended)

    async def _run(self, message: Message, fds: Descriptors) -> None:
        try:
            await self.handler(message)
        except Exception:
            self._count_error()
            logger.exception("handler for %s", describe(message), extra=failure_fields(message))
        finally:
            fds.close()

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._backlog:
            self._start(*self._backlog.popleft())

    def give_up(self) -> tuple[int, list[asyncio.Task[None]]]:
        """Start no more calls: the number of messages that had none, and the calls that are running."""
        return self._backlog.clear(), list(self._running)


class Inbox:
    """Messages to iterate over: `async for message in inbox`.  A message's descriptors are closed with the next one."""

    def __init__(self, loop: Loop, driver: Driver, maxsize: int) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._backlog = Backlog(driver, maxsize)
        self._waiting: asyncio.Future[None] | None = None
        self._in_hand: Descriptors | None = None
        self._is_closed = False

    def __call__(self, message: Message) -> None:
        """Take a message over from the thread that dispatches."""
        if threading.get_ident() == self._thread:
            self._put(*own_fds(message))
        else:
            self._loop.call_soon_threadsafe(self._put, *own_fds(message))

    def _put(self, message: Message, fds: Descriptors) -> None:
        if self._is_closed:
            fds.close()
            return
        self._backlog.append(message, fds)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> Message:
        if self._in_hand is not None:
            self._in_hand.close()
            self._in_hand = None
        while not self._backlog:
            if self._is_closed:
                raise StopAsyncIteration
            if self._waiting is not None:
                raise RuntimeError("one task at a time takes messages out of an inbox")
            self._waiting = self._loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        message, self._in_hand = self._backlog.popleft()
        return message

    def __len__(self) -> int:
        return len(self._backlog)

    def close(self) -> int:
        """End the iteration; the number of messages that nobody has taken."""
        self._is_closed = True
        if self._in_hand is not None:
            self._in_hand.close()
        self._wake()
        return self._backlog.clear()
