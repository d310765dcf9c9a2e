# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The asyncio face of a messaging context.

The running loop watches the context's descriptor and calls dispatch when it is readable; dispatch also sends on what
is queued, so whoever waits for room is looked after each time: no thread and no polling.  Everything is to be called
from that loop's thread.

`Client` is a client of the gateway; it is in a file of its own, and named here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from types import TracebackType
from typing import Self

from msgd.aio.client import Client
from msgd.config import Config
from msgd.errors import NoSuchProcess, QueueFull, ReplyTimeout
from msgd.messaging import REPLY_TIMEOUT, Destination, Messaging
from msgd.results import SendStatus
from msgd.wire.header import Message
from msgd.wire.message_types import MessageClass, type_name
from msgd.wire.server_id import ServerID

__all__ = ["AsyncMessaging", "Client"]


class AsyncMessaging:
    """A messaging context driven by the running event loop; an async context manager.

    `messaging` is the context itself: register() handlers there (they run in the loop), read its statistics().
    """

    def __init__(
        self, config: Config | None = None, *, task_id: int | None = None, listens: MessageClass = MessageClass.ALL
    ) -> None:
        self.messaging = Messaging(config, task_id=task_id, listens=listens)
        self._progress: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._fd = self.messaging.fileno()
        self._loop.add_reader(self._fd, self._dispatch)
        self._loop.call_soon(self._dispatch)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        messaging = self.messaging
        try:
            async with asyncio.timeout(messaging.config.close_timeout):
                while messaging.statistics().queued_messages:
                    await self._next_progress()
        except TimeoutError:
            pass  # close() counts and logs what is left
        self._loop.remove_reader(self._fd)
        messaging.close(timeout=0)

    async def send(
        self,
        dst: Destination,
        message_type: int,
        data: bytes = b"",
        *,
        fds: Collection[int] = (),
        duplicates_allowed: bool = True,
        timeout: float | None = None,
    ) -> SendStatus:
        """Messaging.send, waiting for room at most `timeout` seconds without blocking the loop."""
        deadline = self._loop.time() + (timeout or 0)
        while True:
            try:
                return self.messaging.send(dst, message_type, data, fds=fds, duplicates_allowed=duplicates_allowed)
            except QueueFull as full:
                try:
                    async with asyncio.timeout_at(deadline):
                        await self._next_progress()
                except TimeoutError:
                    raise full from None

    async def request(
        self, dst: Destination, message_type: int, data: bytes, reply_type: int, timeout: float = REPLY_TIMEOUT
    ) -> Message:
        """Messaging.request without blocking the loop."""
        dst = ServerID.of(dst)
        answer: asyncio.Future[Message] = self._loop.create_future()

        def take(message: Message) -> None:
            if message.src.pid == dst.pid and not answer.done():
                answer.set_result(message._replace(fds=tuple(os.dup(fd) for fd in message.fds)))

        def ended() -> None:
            self._dispatch()
            if not answer.done():
                answer.set_exception(NoSuchProcess(f"{dst} ended before it answered"))

        watched = self.messaging.watch(dst)
        self._loop.add_reader(watched, ended)
        self.messaging.register(reply_type, take)
        try:
            await self.send(dst, message_type, data)
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise ReplyTimeout(f"{dst} did not answer {type_name(message_type)} within {timeout:g} seconds") from None
        finally:
            self.messaging.deregister(reply_type, take)
            self._loop.remove_reader(watched)
            os.close(watched)

    async def watch(self, dst: Destination) -> None:
        """Return as soon as the addressed process has ended: the kernel tells, nothing is polled.

        A process that only closes its endpoint has not ended.  Raises NoSuchProcess if it does not live now.
        """
        watched = self.messaging.watch(dst)
        ended = self._loop.create_future()
        self._loop.add_reader(watched, _finish, ended)
        try:
            await ended
        finally:
            self._loop.remove_reader(watched)
            os.close(watched)

    def _dispatch(self) -> None:
        self.messaging.dispatch()
        for waiting in self._progress:
            _finish(waiting)
        self._progress.clear()

    async def _next_progress(self) -> None:
        """Wait until dispatch has run: queues may have shrunk."""
        waiting = self._loop.create_future()
        self._progress.add(waiting)
        try:
            await waiting
        finally:
            self._progress.discard(waiting)


def _finish(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
