# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A client of msgd's gateway, for processes that cannot have an endpoint of their own (docs/gateway.md).

    with Client() as client:
        client.register(0xF000)
        client.send(4711, "PING")
        message = client.receive(timeout=10)

A connection process of msgd has the endpoint; `client.server_id` is its address, and receive() returns
the messages that are sent to it.  Messages that arrive while a request waits for its answer are kept for receive().

What is published to the topics that it subscribes to goes to callbacks, which run in dispatch() and receive():

    client.subscribe("prices.*", print, on_gap=print)
    client.publish("prices.eur", 1.1, wait="acked")
    client.dispatch(timeout=10)

A Client may be used by one thread at a time.  Once the gateway has ended the connection, every method raises
GatewayClosed with the last word of the gateway.  A new Client has a new address.
"""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self

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
from msgd.client.listening import Listening
from msgd.errors import ReplyTimeout
from msgd.messaging.arguments import Data, Destination, Type, data_bytes
from msgd.pubsub.events import Callback, OnGap, Publication
from msgd.pubsub.subscriptions import check_callbacks
from msgd.results import Broadcast, SendStatus
from msgd.wire.gateway.conversation import Conversation
from msgd.wire.gateway.limits import CALL_TIMEOUT
from msgd.wire.gateway.members import Members
from msgd.wire.header import Message
from msgd.wire.pubsub import Data as Published
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
        self._listening = Listening()
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

    # Topics

    def publish(
        self,
        topic: str,
        data: Published = b"",
        *,
        wait: Literal["acked"] | None = None,
        timeout: float | None = CALL_TIMEOUT,
    ) -> Publication:
        """Publish, as PubSub.publish does: to this client, too, if it subscribes to the topic.

        With wait="acked" it returns when all have handled it, or after `timeout` seconds.  A client has handled it when
        the gateway has told it.  Raises MessageTooLarge, NotAllowed, GatewayClosed, TransportError, and QueueFull if 64
        requests wait already; ValueError, TypeError.
        """
        published, seconds = publication_members(topic, data), longest(timeout)
        members = {} if wait is None else {"wait": wait, "timeout": seconds}
        return publication_result(self._ask("publish", 0.0 if wait is None else seconds, b"", published, **members))

    def subscribe(self, topic: str, callback: Callback, *, on_gap: OnGap | None = None) -> None:
        """Call `callback(event)` for each publication to the topic or pattern, in dispatch() and receive().

        What is published after this call has returned comes, or `on_gap(gap)` is called; what either raises is logged.
        """
        check_callbacks(callback, on_gap)
        self._ask("subscribe", topics=topic)
        self._listening.add(topic, callback, on_gap)

    def unsubscribe(self, *topics: str) -> None:
        """End all subscriptions to these topics and patterns."""
        self._ask("unsubscribe", topics=topics)
        for topic in topics:
            self._listening.remove(topic)

    def topics(self, timeout: float | None = CALL_TIMEOUT) -> dict[int, list[str]]:
        """The topics and patterns that are subscribed to, by pid, of those processes that answer in time."""
        seconds = longest(timeout)
        return listed_topics(self._ask("topics", seconds, timeout=seconds))

    def dispatch(self, timeout: float | None = 0) -> int:
        """Run the callbacks of what has come; wait `timeout` seconds for the first (None: no limit).

        Returns how many publications and gaps there were.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._conversation.news and self._exchange(deadline):
            pass
        return self._run_callbacks()

    def _run_callbacks(self) -> int:
        news, number = self._conversation.news, 0
        while news:
            self._listening.tell(news.popleft())
            number += 1
        return number

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None if none has come after `timeout` seconds (None: no limit).

        Meanwhile callbacks run.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        events = self._conversation.events
        self._run_callbacks()
        while not events and self._exchange(deadline):
            self._run_callbacks()
        return events.popleft() if events else None

    def _ask(
        self,
        op: str,
        patience: float = 0.0,
        data: bytes = b"",
        published: Mapping[str, object] | None = None,
        /,
        **members: object,
    ) -> Mapping[str, object]:
        """Send a request and wait for its answer.  `patience` is how long the gateway was told to wait."""
        tag, line = self._conversation.ask(op, data, published, **members)
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
