# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The backends of Litestar's channels and of broadcaster: what one publishes, the subscribers of all get."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from msgd.pubsub import PubSub


def test_litestar(scratch: Path) -> None:
    pytest.importorskip("litestar", reason="litestar is not installed")
    from litestar.channels import ChannelsPlugin

    from msgd.integrations.litestar import MsgdChannelsBackend

    directory = str(scratch / "lock")

    async def body() -> None:
        plugin = ChannelsPlugin(backend=MsgdChannelsBackend(directory), arbitrary_channels_allowed=True)
        async with asyncio.timeout(30), plugin, plugin.start_subscription(["a", "b"]) as subscriber:
            await plugin.wait_published(b"1", "a")
            with PubSub(directory) as other:
                await asyncio.to_thread(other.publish, "litestar.channels/c", b"unwanted")
                await asyncio.to_thread(other.publish, "litestar.channels/b", b"2")
            heard = []
            async for one in subscriber.iter_events():
                heard.append(one)
                if len(heard) == 2:
                    break
            assert heard == [b"1", b"2"]
            assert await plugin._backend.get_history("a") == []

    asyncio.run(body())


def test_broadcaster(scratch: Path) -> None:
    pytest.importorskip("broadcaster", reason="broadcaster is not installed")
    from broadcaster import Broadcast

    from msgd.integrations.broadcaster import MsgdBackend

    directory = str(scratch / "lock")

    async def body() -> None:
        async with asyncio.timeout(30), Broadcast(backend=MsgdBackend(directory)) as broadcast:
            async with broadcast.subscribe("a") as subscriber:
                await broadcast.publish("a", "hello")
                with PubSub(directory) as other:
                    await asyncio.to_thread(other.publish, "broadcaster/b", "unwanted")
                    await asyncio.to_thread(other.publish, "broadcaster/a", "again")
                heard = []
                async for event in subscriber:
                    heard.append((event.channel, event.message))
                    if len(heard) == 2:
                        break
            assert heard == [("a", "hello"), ("a", "again")]

    asyncio.run(body())
