# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""AsyncMessaging: a messaging context in an event loop, with the names and the order of arguments of Messaging.

The loop watches the endpoint's descriptor and dispatches when it is readable; that also sends what is queued, so there
is no thread and no polling (driver.py).  Handlers run in the loop (consumers.py).  Every call is made from the loop's
thread.  A call that is cancelled, at whatever await, leaves no descriptor, handler or future behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from types import TracebackType
from typing import Any, Self

from msgd.aio import driver
from msgd.aio.consumers import BACKLOG_MAX, Inbox, LoopHandler
from msgd.aio.ends import Ends
from msgd.config import Config
from msgd.errors import ContextClosed, MessageTooLarge, MsgdError, QueueFull
from msgd.messaging.arguments import Data, Destination, Type, data_bytes, message_type_number
from msgd.messaging.asking import late
from msgd.messaging.context import Messaging
from msgd.messaging.observer import Observer
from msgd.messaging.registering import Registration
from msgd.messaging.requests import REPLY_TIMEOUT, reply_type_of
from msgd.presence import Process
from msgd.results import Broadcast, SendStatus, Statistics, Survey
from msgd.wire.header import Message
from msgd.wire.message_types import MessageClass
from msgd.wire.server_id import ServerID

CONCURRENCY = 100
"""Calls of one `async def` handler that run at a time by default."""


class AsyncMessaging:
    """A messaging context driven by the running event loop; an async context manager, which opens and closes it.

    The arguments are those of Messaging.  Any number of them may live in a loop, and in loops of several threads.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        task_id: int | None = None,
        listens: MessageClass = MessageClass.ALL,
        observer: Observer | None = None,
    ) -> None:
        self._arguments = {"config": config, "task_id": task_id, "listens": listens, "observer": observer}
        self._messaging: Messaging | None = None
        self._progress: set[asyncio.Future[None]] = set()
        self._handlers: list[tuple[int, LoopHandler]] = []
        self._inboxes: set[Inbox] = set()

    async def __aenter__(self) -> Self:
        if self._messaging is not None:
            raise ContextClosed("an AsyncMessaging is entered once; make another one")
        self._loop = asyncio.get_running_loop()
        self._messaging = messaging = Messaging(**self._arguments)  # type: ignore[arg-type]
        self._endpoint = messaging._endpoint
        self._driver = driver.join(self._endpoint, self._loop, self._note_progress)
        self._ends = Ends(self._loop, self._endpoint)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def messaging(self) -> Messaging:
        """The context itself, for what is not here."""
        if self._messaging is None:
            raise ContextClosed("this AsyncMessaging is not open: use it inside `async with`")
        return self._messaging

    @property
    def server_id(self) -> ServerID:
        """The address of this context."""
        return self.messaging.server_id

    # Handlers

    def register(
        self, message_type: Type, handler: Callable[[Message], Any], *, concurrency: int = CONCURRENCY
    ) -> Registration:
        """Call `handler(message)`, a plain or an `async def` function, in this loop for each message of the type.

        `concurrency`: calls of an `async def` handler that run at a time; 1 keeps them one after the other.  What a
        handler raises is counted and logged.  Returns a handle, whose close() ends it.
        """
        number = message_type_number(message_type)
        messaging = self.messaging
        loop_handler = LoopHandler(self._loop, self._driver, handler, concurrency, self._count_error)
        registration = messaging.register(number, loop_handler)
        self._handlers.append((number, loop_handler))
        return registration

    def deregister(self, message_type: Type, handler: Callable[[Message], Any] | None = None) -> None:
        """Call `handler` (None: any of the type's) no longer; calls that are running go on."""
        number = message_type_number(message_type)
        for one in [one for one in self._handlers if one[0] == number and handler in (None, one[1].handler)]:
            self._handlers.remove(one)
            self.messaging.deregister(number, one[1])

    def _count_error(self) -> None:
        self._endpoint.delivery.handler_errors += 1

    @contextlib.asynccontextmanager
    async def messages(self, *message_types: Type, maxsize: int = BACKLOG_MAX) -> AsyncIterator[Inbox]:
        """An inbox of the messages of these types: `async with m.messages(T) as inbox: async for message in inbox`.

        When `maxsize` messages wait in it, this process takes no more in until there is room: senders see a full queue.
        """
        messaging = self.messaging
        inbox = Inbox(self._loop, self._driver, maxsize)
        numbers = [message_type_number(one) for one in message_types]
        self._inboxes.add(inbox)
        try:
            with contextlib.ExitStack() as registrations:
                for number in numbers:
                    registrations.enter_context(messaging.register(number, inbox))
                yield inbox
        finally:
            self._inboxes.discard(inbox)
            self._give_up(messaging.server_id, inbox.close())

    def _give_up(self, server_id: ServerID, number: int) -> None:
        if number:
            self._endpoint.drops("not handled before close", f"by {server_id}", number)

    # Sending

    async def send(
        self,
        dst: Destination,
        message_type: Type,
        data: Data = b"",
        *,
        fds: Collection[int] = (),
        duplicates_allowed: bool = True,
        timeout: float | None = 0,
    ) -> SendStatus:
        """As Messaging.send; it waits for room at most `timeout` seconds, without blocking the loop."""
        messaging = self.messaging
        while True:
            try:
                return messaging.send(dst, message_type, data, fds=fds, duplicates_allowed=duplicates_allowed)
            except QueueFull as full:
                if timeout == 0:
                    raise
                deadline = None if timeout is None else self._loop.time() + timeout
                timeout = await self._wait_for_progress(full, deadline)

    async def _wait_for_progress(self, full: QueueFull, deadline: float | None) -> float | None:
        """Wait until a dispatch has run: queues may have shrunk.  The seconds left; QueueFull if there are none."""
        waiting = self._loop.create_future()
        self._progress.add(waiting)
        try:
            with self._driver.urgent():
                async with asyncio.timeout_at(deadline):
                    await waiting
        except TimeoutError:
            raise full from None
        finally:
            self._progress.discard(waiting)
        return None if deadline is None else max(deadline - self._loop.time(), 1e-9)

    def _note_progress(self) -> None:
        for waiting in tuple(self._progress):
            if not waiting.done():
                waiting.set_result(None)

    async def send_all(self, message_type: Type, data: Data = b"", *, duplicates_allowed: bool = True) -> Broadcast:
        """As Messaging.send_all."""
        return self.messaging.send_all(message_type, data, duplicates_allowed=duplicates_allowed)

    async def send_all_many(self, messages: Iterable[tuple[Type, Data]]) -> Broadcast:
        """As Messaging.send_all_many."""
        return self.messaging.send_all_many(messages)

    async def reply(self, message: Message, message_type: Type, data: Data = b"", *, fds: Collection[int] = ()) -> None:
        """As Messaging.reply."""
        self.messaging.reply(message, message_type, data, fds=fds)

    # Requests

    async def request(
        self,
        dst: Destination,
        message_type: Type,
        data: Data = b"",
        reply_type: Type | None = None,
        timeout: float | None = REPLY_TIMEOUT,
        *,
        fds: Collection[int] = (),
        answer_from_any: bool = False,
    ) -> Message:
        """As Messaging.request, without blocking the loop; any number may be in flight."""
        dst, loop = ServerID.of(dst), self._loop
        settled = loop.create_future()

        def settle() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
                loop.call_soon_threadsafe(_finish, settled)

        beginning = self.messaging.begin_request(
            dst, message_type, data, reply_type, settle, fds=fds, answer_from_any=answer_from_any
        )
        with self._driver.urgent(), beginning as request, self._ends.watching(self.messaging, request):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await settled
            if not request.is_settled:
                raise late(dst, message_type_number(message_type), timeout)
            return request.result()

    async def survey(
        self,
        message_type: Type,
        data: Data = b"",
        reply_type: Type | None = None,
        timeout: float | None = REPLY_TIMEOUT,
    ) -> Survey:
        """As Messaging.survey."""
        number, packed = message_type_number(message_type), data_bytes(data)
        reply = reply_type_of(number, None if reply_type is None else message_type_number(reply_type))
        answers: dict[int, Message] = {}
        failures: dict[int, MsgdError] = {}

        async def ask(dst: ServerID) -> None:
            try:
                answers[dst.pid] = await self.request(dst, number, packed, reply, timeout)
            except MessageTooLarge:
                raise
            except MsgdError as error:
                failures[dst.pid] = error

        asking = [ask(dst) for dst in self.messaging._others(number)]
        await asyncio.gather(*asking)
        return Survey(answers, failures)

    # Who is here

    async def watch(self, dst: Destination) -> None:
        """Return as soon as the addressed process has ended: the kernel tells, nothing is polled.

        A process that only closes its endpoint has not ended.  Raises NoSuchProcess if it does not live now.
        """
        pidfd = self.messaging.watch(dst)
        try:
            ended = self._loop.create_future()
            self._loop.add_reader(pidfd, _finish, ended)
            try:
                await ended
            finally:
                self._loop.remove_reader(pidfd)
        finally:
            os.close(pidfd)

    async def processes(self) -> list[Process]:
        """As Messaging.processes."""
        return self.messaging.processes()

    async def is_alive(self, dst: Destination) -> bool:
        """As Messaging.is_alive."""
        return self.messaging.is_alive(dst)

    async def add_name(self, name: str) -> None:
        """As Messaging.add_name."""
        self.messaging.add_name(name)

    async def remove_name(self, name: str) -> None:
        """As Messaging.remove_name."""
        self.messaging.remove_name(name)

    async def lookup(self, name: str) -> list[ServerID]:
        """As Messaging.lookup."""
        return self.messaging.lookup(name)

    async def names(self) -> dict[str, list[ServerID]]:
        """As Messaging.names."""
        return self.messaging.names()

    def statistics(self) -> Statistics:
        """As Messaging.statistics."""
        return self.messaging.statistics()

    # The end

    async def aclose(self, timeout: float | None = None) -> int:
        """Leave: wait at most `timeout` seconds (`msgd:close timeout`) for queued messages and running handlers.

        Returns the number of messages that could not be delivered.  A second call does nothing.  A cancelled one closes
        at once.
        """
        messaging, self._messaging = self._messaging, None
        if messaging is None or messaging._closed:
            return 0
        seconds = messaging.config.close_timeout if timeout is None else timeout
        running: list[asyncio.Task[None]] = []
        try:
            for message_type, handler in self._handlers:
                messaging.deregister(message_type, handler)
                number, tasks = handler.give_up()
                running += [task for task in tasks if task is not asyncio.current_task()]
                self._give_up(messaging.server_id, number)
            for inbox in tuple(self._inboxes):
                self._give_up(messaging.server_id, inbox.close())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    if running:
                        await asyncio.wait(running)
                    while messaging.statistics().queued_messages:
                        waiting = self._loop.create_future()
                        self._progress.add(waiting)
                        await waiting
        finally:
            for task in running:
                task.cancel()
            self._note_progress()  # those that wait for room find the context closed
            self._ends.close()
            driver.leave(self._endpoint, self._driver, self._loop, self._note_progress)
            undelivered = messaging.close(timeout=0)
        return undelivered


def _finish(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
