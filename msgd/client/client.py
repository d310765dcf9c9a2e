# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A client of msgd's gateway, for processes that cannot have an endpoint of their own (docs/gateway.md).

    with Client() as client:
        client.register(0xF000)
        client.send(4711, "PING")
        message = client.receive(timeout=10)

A connection process of msgd has the endpoint; `client.server_id` is its address, and receive() returns
the messages that are sent to it.  Messages that arrive while a request waits for its answer are kept for receive().

A Client may be used by one thread at a time.  Once the gateway has ended the connection, every method raises
GatewayClosed with the last word of the gateway.  A new Client has a new address.
"""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
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
from msgd.errors import ReplyTimeout
from msgd.messaging.arguments import Data, Destination, Type, data_bytes
from msgd.results import Broadcast, SendStatus
from msgd.wire.gateway.conversation import Conversation
from msgd.wire.gateway.limits import CALL_TIMEOUT
from msgd.wire.gateway.members import Members
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

_READ = 1 << 16


class Client:
    """A connection to the gateway at `path`, by default the configured one; a context manager.

    Types are numbers or names; a destination is a ServerID, a pid or server-id text.  A request waits up to
    `timeout` seconds for the gateway, which answers at once unless it is told to wait.

    Raises GatewayClosed if nobody listens there, NotAllowed, ConfigError.
    """

    def __init__(self, path: str | None = None, *, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._conversation = Conversation()
        self._unsent = bytearray()
        path = gateway_path(path)
        try:
            self._socket = connect(path, timeout)
        except OSError as error:
            raise no_gateway(path, error) from error
        try:
            hello = Members(dict(self._ask("hello")))
            self.server_id: ServerID = hello.take_server_id("server_id")
            self.version: str = hello.take_text("version")
            self.backend: str = hello.take_text("backend")
            self._conversation.keep_to(hello.take("limits"))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection.  A second call does nothing."""
        self._socket.close()

    def fileno(self) -> int:
        """A descriptor that polls readable when the gateway has sent something; receive(timeout=0) then reads it."""
        return self._socket.fileno()

    def send(self, dst: Destination, message_type: Type, data: Data = b"", *, timeout: float | None = 0) -> SendStatus:
        """Send a message; if the receiver's queue is full, have the gateway wait `timeout` seconds for room.

        Raises what Messaging.send() raises, NotAllowed, and GatewayClosed.
        """
        seconds = longest(timeout)
        members = {"to": wire_address(dst), "type": message_type, "timeout": seconds or None}
        answer = self._ask("send", seconds, data_bytes(data), **members)
        return SendStatus(answer["status"])

    def send_all(self, message_type: Type, data: Data = b"") -> Broadcast:
        """Send to every living process.  Returns the number of processes that took it."""
        return broadcast_result(self._ask("send_all", 0.0, data_bytes(data), type=message_type))

    def request(
        self,
        dst: Destination,
        message_type: Type,
        data: Data = b"",
        reply_type: Type | None = None,
        timeout: float | None = CALL_TIMEOUT,
    ) -> Message:
        """Send a message and return the first message of `reply_type` that its receiver sends back.

        `reply_type` may be left out for Samba's pairs, such as PING and PONG.  Raises what send() raises, NoSuchProcess
        if the receiver ends first, ReplyTimeout.
        """
        seconds = longest(timeout)
        members = {
            "to": wire_address(dst),
            "type": message_type,
            "answer": answer_type(message_type, reply_type),
            "timeout": seconds,
        }
        return answering_message(self._ask("call", seconds, data_bytes(data), **members))

    def ping(self, dst: Destination | None = None, timeout: float = CALL_TIMEOUT) -> None:
        """Return when the process has answered a PING (None: when the gateway has); errors as request()."""
        members = {} if dst is None else {"to": wire_address(dst), "timeout": timeout}
        self._ask("ping", timeout, **members)

    def register(self, *types: Type) -> None:
        """Let receive() return messages of these types."""
        self._ask("register", types=types)

    def deregister(self, *types: Type) -> None:
        """Stop receiving messages of these types."""
        self._ask("deregister", types=types)

    def processes(self) -> list[ServerID]:
        """The living processes, the one of this connection included."""
        return listed_processes(self._ask("names"))

    def names(self) -> dict[str, list[ServerID]]:
        """The names that processes have added, with the processes of each."""
        return listed_names(self._ask("names"))

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None if none has come after `timeout` seconds (None: no limit)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        events = self._conversation.events
        while not events and self._exchange(deadline):
            pass
        return events.popleft() if events else None

    def _ask(self, op: str, patience: float = 0.0, data: bytes = b"", /, **members: object) -> Mapping[str, object]:
        """Send a request and wait for its answer.  `patience` is how long the gateway was told to wait."""
        tag, line = self._conversation.ask(op, data, **members)
        self._unsent += line
        deadline = time.monotonic() + self._timeout + patience
        try:
            while (answer := self._conversation.take(tag)) is None:
                if not self._exchange(deadline):
                    raise ReplyTimeout(f"the gateway did not answer {op} within {self._timeout + patience:g} seconds")
        finally:  # by Ctrl-C, too
            self._unsent += self._conversation.cancel(tag)
            self._conversation.forget(tag)
        return answer

    def _exchange(self, deadline: float | None) -> bool:
        """Wait until something can be written or read, and do so.  Returns False if the deadline passes first.

        Both at once: a gateway whose backlog for us is full does not read until we do.
        """
        if self._conversation.ended is not None:
            raise self._conversation.ended
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = poll.poll(None if left is None else left * 1000)
        for _, events in ready:
            if events & select.POLLOUT:
                self._write()
            if events & ~select.POLLOUT:
                self._conversation.feed(self._read())
        return bool(ready)

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            sent = len(self._unsent)  # the gateway has closed; its last word may be there to read
        del self._unsent[:sent]

    def _read(self) -> bytes:
        try:
            return self._socket.recv(_READ)
        except ConnectionResetError:
            return b""
