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
from typing import Self

from msgd.client.answers import (
    answer_type,
    answering_message,
    broadcast_result,
    listed_names,
    listed_processes,
    longest,
    wire_address,
)
from msgd.client.connecting import TIMEOUT, connect, gateway_path, no_gateway
from msgd.errors import GatewayClosed, ReplyTimeout
from msgd.messaging.arguments import Data, Destination, Type, data_bytes
from msgd.results import Broadcast, SendStatus
from msgd.wire.gateway.conversation import Conversation
from msgd.wire.gateway.limits import CALL_TIMEOUT
from msgd.wire.gateway.members import Members
from msgd.wire.header import Message
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

    async def _ask(
        self, op: str, patience: float = 0.0, data: bytes = b"", /, **members: object
    ) -> Mapping[str, object]:
        tag, line = self._conversation.ask(op, data, **members)
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
            self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
