# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A backend for Litestar's channels, so that those of several workers are one.

    ChannelsPlugin(backend=MsgdChannelsBackend(name="shop"), arbitrary_channels_allowed=True)

It keeps no history.  A gap is logged: Litestar has nobody to tell.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable

from litestar.channels import ChannelsBackend

from msgd.aio import PubSub
from msgd.aio.pubsub import QUEUE_MAX
from msgd.config import Config
from msgd.integrations.streams import Stream


class MsgdChannelsBackend(ChannelsBackend):  # type: ignore[misc]  # its types are not looked at
    """The backend; `directory`, `name` as msgd.aio.PubSub has them, `maxsize`: events that wait for Litestar."""

    def __init__(
        self,
        directory: str | os.PathLike[str] | Config | None = None,
        *,
        name: str | None = None,
        maxsize: int = QUEUE_MAX,
    ) -> None:
        self._stream = Stream("litestar.channels/", lambda: PubSub(directory, name=name), maxsize)

    async def on_startup(self) -> None:
        """Open it."""
        await self._stream.open()

    async def on_shutdown(self) -> None:
        """Close it."""
        await self._stream.close()

    async def publish(self, data: bytes, channels: Iterable[str]) -> None:
        """Send to the subscribers of these channels in all workers."""
        await self._stream.publish(data, channels)

    async def subscribe(self, channels: Iterable[str]) -> None:
        """Hear these channels from now on."""
        self._stream.wanted.update(channels)

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Hear them no more."""
        self._stream.wanted.difference_update(channels)

    async def stream_events(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """What comes in, for ever."""
        while True:
            yield await self._stream.next()

    async def get_history(self, channel: str, limit: int | None = None) -> list[bytes]:
        """Nothing: no publication is stored."""
        return []
