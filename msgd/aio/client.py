# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The gateway's client for asyncio, `msgd.aio.Client`: msgd.client.Client with awaited methods.

A task of the running loop reads the replies of the gateway.  Several requests may wait for their answers at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Literal, Self

from msgd.aio.listening import ClientEvents, Listening, too_slow
from msgd.aio.pubsub import QUEUE_MAX
from msgd.aio.queues import Queue, Subscription
from msgd.client.answers import (
    answer_type,
    answering_message,
    broadcast_result,
    listed_names,
    listed_processes,
    listed_topics,
    longest,
    publication_members,
    publication_result,
    wire_address,
)
from msgd.client.connecting import TIMEOUT, connect, gateway_path, no_gateway
from msgd.errors import GatewayClosed, ReplyTimeout
from msgd.messaging.arguments import Data, Destination, Type, data_bytes
from msgd.pubsub.events import Callback, OnGap, Publication
from msgd.pubsub.subscriptions import check_callbacks
from msgd.results import Broadcast, SendStatus
from msgd.wire.gateway.conversation import Conversation
from msgd.wire.gateway.limits import CALL_TIMEOUT
from msgd.wire.gateway.members import Members
from msgd.wire.gateway.requests import write_request
from msgd.wire.header import Message
from msgd.wire.pubsub import Data as Published
from msgd.wire.server_id import ServerID

_READ = 1 << 16


class Client:
    """A connection to the gateway at `path`, by default the configured one; an async context manager.

    It is connected inside the `async with` only.
    """

    server_id: ServerID
    version: str
    backend: str

    def __init__(self, path: str | None = None, *, timeout: float = TIMEOUT) -> None:
        self._path = gateway_path(path)
        self._timeout = timeout
        self._conversation = Conversation()
        self._progress = asyncio.Condition()
        self._listening = Listening()
        self._subscriptions: set[Subscription] = set()

    async def __aenter__(self) -> Self:
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(sock=await self._connect())
        except OSError as error:
            raise no_gateway(self._path, error) from error
        self._reading = asyncio.create_task(self._read())
        try:
            hello = Members(dict(await self._ask("hello")))
            self.server_id = hello.take_server_id("server_id")
            self.version = hello.take_text("version")
            self.backend = hello.take_text("backend")
            self._conversation.keep_to(hello.take("limits"))
        except BaseException:
            await self._close()
            raise
        return self

    async def _connect(self) -> socket.socket:
        try:
            return connect(self._path, 0)
        except BlockingIOError:  # the queue is full; a thread waits for room, since no event reports it
            return await asyncio.to_thread(connect, self._path, self._timeout)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._close()

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Messages as they are received.  GatewayClosed when the gateway ends the connection."""
        while True:
            message = await self.receive()
            assert message is not None
            yield message

    async def send(
        self, dst: Destination, message_type: Type, data: Data = b"", *, timeout: float | None = 0
    ) -> SendStatus:
        """As Client.send."""
        seconds = longest(timeout)
        members = {"to": wire_address(dst), "type": message_type, "timeout": seconds or None}
        answer = await self._ask("send", seconds, data_bytes(data), **members)
        return SendStatus(answer["status"])

    async def send_all(self, message_type: Type, data: Data = b"") -> Broadcast:
        """As Client.send_all."""
        return broadcast_result(await self._ask("send_all", 0.0, data_bytes(data), type=message_type))

    async def request(
        self,
        dst: Destination,
        message_type: Type,
        data: Data = b"",
        reply_type: Type | None = None,
        timeout: float | None = CALL_TIMEOUT,
    ) -> Message:
        """As Client.request."""
        seconds = longest(timeout)
        members = {
            "to": wire_address(dst),
            "type": message_type,
            "answer": answer_type(message_type, reply_type),
            "timeout": seconds,
        }
        return answering_message(await self._ask("call", seconds, data_bytes(data), **members))

    async def ping(self, dst: Destination | None = None, timeout: float = CALL_TIMEOUT) -> None:
        """As Client.ping."""
        members = {} if dst is None else {"to": wire_address(dst), "timeout": timeout}
        await self._ask("ping", timeout, **members)

    async def register(self, *types: Type) -> None:
        """As Client.register."""
        await self._ask("register", types=types)

    async def deregister(self, *types: Type) -> None:
        """As Client.deregister."""
        await self._ask("deregister", types=types)

    async def processes(self) -> list[ServerID]:
        """As Client.processes."""
        return listed_processes(await self._ask("names"))

    async def names(self) -> dict[str, list[ServerID]]:
        """As Client.names."""
        return listed_names(await self._ask("names"))

    async def receive(self, timeout: float | None = None) -> Message | None:
        """As Client.receive."""
        events = self._conversation.events
        try:
            async with asyncio.timeout(timeout), self._progress:
                await self._progress.wait_for(lambda: events or self._conversation.ended)
        except TimeoutError:
            return None
        if events:
            return events.popleft()
        assert self._conversation.ended is not None
        raise self._conversation.ended

    # Topics

    async def publish(
        self,
        topic: str,
        data: Published = b"",
        *,
        wait: Literal["acked"] | None = None,
        timeout: float | None = CALL_TIMEOUT,
    ) -> Publication:
        """As Client.publish."""
        published, seconds = publication_members(topic, data), longest(timeout)
        members = {} if wait is None else {"wait": wait, "timeout": seconds}
        patience = 0.0 if wait is None else seconds
        return publication_result(await self._ask("publish", patience, b"", published, **members))

    async def subscribe(
        self, topic: str, callback: Callback, *, on_gap: OnGap | None = None, maxsize: int = QUEUE_MAX
    ) -> Subscription:
        """Call `callback(event)`, plain or `async def`, in the loop, as msgd.aio.PubSub.subscribe does.

        The end of the connection is a gap, too: GapReason.ENDED.  Returns a handle, whose close() ends it.
        """
        check_callbacks(callback, on_gap)
        subscription = Subscription(await self._listen((topic,), on_gap, maxsize), callback, self._give_up)
        self._subscriptions.add(subscription)
        subscription.task.add_done_callback(lambda _: self._subscriptions.discard(subscription))
        return subscription

    @contextlib.asynccontextmanager
    async def events(
        self, *topics: str, on_gap: OnGap | None = None, maxsize: int = QUEUE_MAX
    ) -> AsyncIterator[ClientEvents]:
        """Events to iterate over: `async with client.events("a.*") as events: async for event in events`.

        It raises GatewayClosed when the connection has ended.
        """
        queue = await self._listen(topics, on_gap, maxsize)
        try:
            yield ClientEvents(queue, self._conversation)
        finally:
            self._give_up(queue)

    async def unsubscribe(self, *topics: str) -> None:
        """End all subscriptions to these topics and patterns; events() that has others, too, goes on with those."""
        await self._ask("unsubscribe", topics=topics)
        for queue in self._listening.to(topics):
            self._listening.remove(queue)

    async def topics(self, timeout: float | None = CALL_TIMEOUT) -> dict[int, list[str]]:
        """As Client.topics."""
        seconds = longest(timeout)
        return listed_topics(await self._ask("topics", seconds, timeout=seconds))

    async def _listen(self, topics: tuple[str, ...], on_gap: OnGap | None, maxsize: int) -> Queue:
        queue = Queue(topics, on_gap, maxsize, too_slow)
        self._listening.add(queue)  # what is published may come right behind the answer
        try:
            await self._ask("subscribe", topics=topics)
        except BaseException:
            self._give_up(queue)
            raise
        return queue

    def _give_up(self, queue: Queue) -> None:
        unwanted = self._listening.remove(queue)
        if unwanted and self._conversation.ended is None:
            self._writer.write(write_request("unsubscribe", topics=unwanted))  # its answer is nobody's

    async def _ask(
        self,
        op: str,
        patience: float = 0.0,
        data: bytes = b"",
        published: Mapping[str, object] | None = None,
        /,
        **members: object,
    ) -> Mapping[str, object]:
        tag, line = self._conversation.ask(op, data, published, **members)
        seconds = self._timeout + patience
        try:
            async with asyncio.timeout(seconds):
                self._writer.write(line)
                with contextlib.suppress(ConnectionError):  # the gateway has closed; its last word may be there to read
                    await self._writer.drain()
                async with self._progress:
                    while (answer := self._conversation.take(tag)) is None:
                        await self._progress.wait()
                return answer
        except ReplyTimeout:
            raise  # the gateway's own answer
        except TimeoutError:
            raise ReplyTimeout(f"the gateway did not answer {op} within {seconds:g} seconds") from None
        finally:  # by cancellation, too
            if line := self._conversation.cancel(tag):
                self._writer.write(line)
            self._conversation.forget(tag)

    async def _read(self) -> None:
        """The reading task, until the connection ends."""
        while self._conversation.ended is None:
            try:
                data = await self._reader.read(_READ)
            except ConnectionError:
                data = b""
            self._conversation.feed(data)
            self._listening.tell(self._conversation.news)
            if self._conversation.ended is not None:
                self._listening.end()
            async with self._progress:
                self._progress.notify_all()

    async def _close(self) -> None:
        self._reading.cancel()
        try:
            await asyncio.wait((self._reading,))  # which raises what cancels us, and not what has ended that task
            if not self._reading.cancelled():
                self._reading.result()
        finally:
            self._conversation.ended = self._conversation.ended or GatewayClosed("this client has been closed")
            self._end_subscriptions()
            self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def _end_subscriptions(self) -> None:
        """This client has been closed: callbacks that run are cancelled, but for one that closes it."""
        for queue in self._listening.queues:
            self._listening.remove(queue)
        for subscription in self._subscriptions:
            if subscription.task is not asyncio.current_task():
                subscription.task.cancel()
