# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What waits for one subscription of asyncio: its events and gaps, in their order, and who takes them.

Rule 1.  Each subscription has a queue of its own, so that one that is slow holds up no other.
Rule 2.  An event that has no room is dropped, whoever publishes with wait="acked" is told so, and the subscription
    is told of a gap: behind the events that have room, and once for all that are dropped in a row.
Rule 3.  Only events need room: a gap always has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, cast

from msgd.events import MISSED, fields
from msgd.pubsub.events import Callback, Event, Gap, OnGap
from msgd.pubsub.subscriptions import Receipt, failure_fields, matcher

logger = logging.getLogger("msgd")

Item = tuple[Event, Receipt]


class Queue:
    """The events and gaps of one subscription to some topics; `on_slow` is called when an event has had no room.

    Made in the loop; put() and miss() come from the thread that dispatches.
    """

    def __init__(
        self, topics: tuple[str, ...], on_gap: OnGap | None, maxsize: int, on_slow: Callable[[Queue], None]
    ) -> None:
        for topic in topics:
            matcher(topic)
        self.sinks = tuple(_Sink(topic, self) for topic in topics)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._on_gap = on_gap
        self._maxsize = maxsize
        self._on_slow = on_slow
        self._is_overflowing = False
        self._items: deque[Item | Gap] = deque()
        self._has_items = asyncio.Event()
        self.is_closed = False
        self._is_finished = False

    def put(self, event: Event, receipt: Receipt) -> None:
        """Take an event, if there is room."""
        if self.is_closed:
            receipt.dropped("the subscription has been closed")
        elif len(self._items) < self._maxsize:
            self._is_overflowing = False
            self._append((event, receipt))
        else:
            receipt.dropped(f"{self._maxsize} events wait for the subscription already")
            if not self._is_overflowing:
                self._is_overflowing = True
                self._on_slow(self)

    def miss(self, gap: Gap) -> bool:
        """Something may have been missed.  Returns whether there is anybody to tell, which happens in its turn."""
        if self._on_gap is not None and not self.is_closed:
            self._append(gap)
        return self._on_gap is not None

    def _append(self, item: Item | Gap) -> None:
        self._items.append(item)
        if threading.get_ident() == self._thread:
            self._has_items.set()
        else:
            with contextlib.suppress(RuntimeError):  # the loop has been closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._has_items.set)

    async def next(self) -> Item | None:
        """The next event; gaps in front of it are told first.  None once the queue is closed, or finished and empty."""
        while not self.is_closed:
            if not self._items:
                if self._is_finished:
                    return None
                self._has_items.clear()
                await self._has_items.wait()
                continue
            item = self._items.popleft()
            if not isinstance(item, Gap):
                return item
            await self._tell(item)
        return None

    async def _tell(self, gap: Gap) -> None:
        assert self._on_gap is not None
        try:
            await _called(self._on_gap, gap)
        except Exception:
            logger.exception("on_gap: %s", gap, extra=fields(MISSED))

    def finish(self) -> None:
        """Nothing more will come: next() says so behind what waits."""
        self._is_finished = True
        self._has_items.set()

    def close(self) -> None:
        """Take nothing more, and give up what waits."""
        self.is_closed = True
        self._has_items.set()
        while self._items:
            item = self._items.popleft()
            if not isinstance(item, Gap):
                item[1].dropped("the subscription has been closed")


class _Sink:
    """One topic of a queue, as the hub sees it."""

    def __init__(self, topic: str, queue: Queue) -> None:
        self.topic = topic
        self.queue = queue

    def deliver(self, event: Event, receipt: Receipt) -> None:
        """Take an event."""
        self.queue.put(event, receipt)

    def miss(self, gap: Gap) -> bool:
        """Something may have been missed; a queue with several topics is told once."""
        return self.queue.miss(gap) if self is self.queue.sinks[0] else False


class Subscription:
    """One callback, plain or `async def`, that runs in the loop for one event after the other; close() ends it."""

    def __init__(self, queue: Queue, callback: Callback | None, remove: Callable[[Queue], None]) -> None:
        self.callback = callback
        self.queue = queue
        self._remove = remove
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while (item := await self.queue.next()) is not None:
            event, receipt = item
            error: BaseException | None = None
            try:
                assert self.callback is not None  # without one it has no topics: it waits for gaps
                await _called(self.callback, event)
            except Exception as raised:
                error = raised
                logger.exception("a callback for %s", event.topic, extra=failure_fields(event))
            except BaseException as raised:
                error = raised
                raise
            finally:
                receipt.ran(error)

    def close(self) -> None:
        """Call the callback no more; a call that is running goes on.  A second call does nothing."""
        self._remove(self.queue)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Events:
    """Events to iterate over.  One counts as handled when the next one is asked for."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._in_hand: Receipt | None = None

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Event:
        self.finish()
        item = await self._queue.next()
        if item is None:
            raise StopAsyncIteration
        event, self._in_hand = item
        return event

    def finish(self) -> None:
        """The event in hand has been handled."""
        receipt, self._in_hand = self._in_hand, None
        if receipt is not None:
            receipt.ran()


async def _called(callback: Callable[[Any], object], subject: Event | Gap) -> None:
    """Call a plain or an `async def` function."""
    result = callback(subject)
    if inspect.isawaitable(result):
        await cast("Awaitable[object]", result)
