# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A backend for broadcaster: `Broadcast(backend=MsgdBackend(name="shop"))`.  Messages are text or bytes."""

from __future__ import annotations

import os
from typing import Any

from broadcaster import BroadcastBackend, Event

from msgd.aio import PubSub
from msgd.aio.pubsub import QUEUE_MAX
from msgd.config import Config
from msgd.integrations.streams import Stream


class MsgdBackend(BroadcastBackend):  # type: ignore[misc]  # its types are not looked at
    """The backend; `directory`, `name` as msgd.aio.PubSub has them, `maxsize`: events that wait for broadcaster."""

    def __init__(
        self,
        directory: str | os.PathLike[str] | Config | None = None,
        *,
        name: str | None = None,
        maxsize: int = QUEUE_MAX,
    ) -> None:
        self._stream = Stream("broadcaster/", lambda: PubSub(directory, name=name), maxsize)

    async def connect(self) -> None:
        """Open it."""
        await self._stream.open()

    async def disconnect(self) -> None:
        """Close it."""
        await self._stream.close()

    async def subscribe(self, channel: str) -> None:
        """Hear a channel from now on."""
        self._stream.wanted.add(channel)

    async def unsubscribe(self, channel: str) -> None:
        """Hear it no more."""
        self._stream.wanted.discard(channel)

    async def publish(self, channel: str, message: Any) -> None:
        """Send to the subscribers of a channel in all workers."""
        await self._stream.publish(message, (channel,))

    async def next_published(self) -> Event:
        """The next message that has come in."""
        return Event(*await self._stream.next())
