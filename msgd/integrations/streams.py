# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the backends of Litestar and broadcaster have in common: one stream of events, filtered by channel.

Both take each event by a call of its own, in a task of their choice.  So the events come in by a callback and wait in a
queue, and the callback waits for room there: what does not fit then is a gap, which is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from msgd.aio import PubSub
from msgd.pubsub import Event


class Stream:
    """The events of the channels in `wanted`.  `prefix` begins their topics; `maxsize` wait before some are missed."""

    def __init__(self, prefix: str, make: Callable[[], PubSub], maxsize: int) -> None:
        self._prefix = prefix
        self._make = make
        self._maxsize = maxsize
        self.wanted: set[str] = set()

    async def open(self) -> None:
        """Begin; once more after close()."""
        self._waiting: asyncio.Queue[tuple[str, Any]] = asyncio.Queue(1)
        async with contextlib.AsyncExitStack() as opened:
            self._pubsub = await opened.enter_async_context(self._make())
            self._pubsub.subscribe(f"{self._prefix}*", self._take, maxsize=self._maxsize)
            self._opened = opened.pop_all()

    async def close(self) -> None:
        """End, without waiting for what has not been taken."""
        self.wanted.clear()
        with contextlib.suppress(asyncio.QueueEmpty):
            self._waiting.get_nowait()
        await self._pubsub.aclose(0)
        await self._opened.aclose()

    async def _take(self, event: Event) -> None:
        channel = event.topic.removeprefix(self._prefix)
        if channel in self.wanted:
            await self._waiting.put((channel, event.data))

    async def publish(self, data: Any, channels: Iterable[str]) -> None:
        """Send to these channels in all workers."""
        await self._pubsub.publish_many([(self._prefix + channel, data) for channel in channels])

    async def next(self) -> tuple[str, Any]:
        """The next event: its channel, and its data."""
        return await self._waiting.get()
