"""A client of msgd's gateway, for processes that cannot have an endpoint of their own (docs/gateway.md).

    with Client() as client:
        client.register(0xF000)
        client.send(4711, "PING")
        message = client.receive(timeout=10)

A connection process of msgd has the endpoint; `client.server_id` is its address, and messages to it come out of
receive().  While a request waits for its answer, messages that come in are kept for receive().

One thread at a time uses a Client.  When the gateway ends the connection, everything raises GatewayClosed with its
last word; a new Client has a new address.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from msgd.config import Config
from msgd.errors import GatewayClosed, MalformedMessage, ReplyTimeout
from msgd.linux import set_send_timeout
from msgd.results import SendStatus
from msgd.wire.gateway.conversation import Conversation
from msgd.wire.gateway.json_lines import Members
from msgd.wire.gateway.limits import CALL_TIMEOUT
from msgd.wire.gateway.replies import read_message
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

TIMEOUT = 30.0
"""Seconds that a request waits for the gateway by default."""

_READ = 1 << 16

_SOON = 1e-3
"""Seconds; 0 would be for ever."""

Destination = ServerID | int | str
Type = int | str


class Client:
    """A connection to the gateway at `path`, by default the configured one; a context manager.

    Types are numbers or names; a destination is a ServerID, a pid or server-id text.  Every request waits at most
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
        """Leave.  A second call does nothing."""
        self._socket.close()

    def fileno(self) -> int:
        """A descriptor that polls readable when something has come from the gateway; receive(timeout=0) takes it in."""
        return self._socket.fileno()

    def send(self, to: Destination, message_type: Type, data: bytes = b"", *, timeout: float = 0.0) -> SendStatus:
        """Send a message; if the receiver's queue is full, have the gateway wait `timeout` seconds for room.

        Raises what Messaging.send() raises, NotAllowed, and GatewayClosed.
        """
        answer = self._ask("send", timeout, data, to=wire_address(to), type=message_type, timeout=timeout or None)
        return SendStatus(answer["status"])

    def send_all(self, message_type: Type, data: bytes = b"") -> int:
        """Send to every living process; how many took it."""
        answer = self._ask("send_all", 0.0, data, type=message_type)
        return delivered(answer)

    def call(
        self, to: Destination, message_type: Type, data: bytes, answer: Type, timeout: float = CALL_TIMEOUT
    ) -> Message:
        """Send a message; the first message of the type `answer` that its receiver sends back.

        Raises what send() raises, NoSuchProcess if the receiver ends first, ReplyTimeout.
        """
        members = self._ask(
            "call",
            timeout,
            data,
            to=wire_address(to),
            type=message_type,
            answer=answer,
            timeout=timeout,
        )
        return answering_message(members)

    def ping(self, to: Destination | None = None, timeout: float = CALL_TIMEOUT) -> None:
        """Return when the process has answered a PING (None: when the gateway has); errors as call()."""
        members = {} if to is None else {"to": wire_address(to), "timeout": timeout}
        self._ask("ping", timeout, **members)

    def register(self, *types: Type) -> None:
        """Have messages of these types come out of receive()."""
        self._ask("register", types=types)

    def deregister(self, *types: Type) -> None:
        """No more messages of these types."""
        self._ask("deregister", types=types)

    def processes(self) -> list[ServerID]:
        """The processes that are there, this connection's included."""
        return listed_processes(self._ask("names"))

    def names(self) -> dict[str, list[ServerID]]:
        """The names that processes have taken, and which processes these are."""
        return listed_names(self._ask("names"))

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None if none has come after `timeout` seconds (None: wait for ever)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        events = self._conversation.events
        while not events and self._turn(deadline):
            pass
        return events.popleft() if events else None

    def _ask(self, op: str, patience: float = 0.0, data: bytes = b"", /, **members: object) -> Mapping[str, object]:
        """Send a request and wait for its answer; `patience`: how long the gateway is allowed to take for it."""
        tag, line = self._conversation.ask(op, data, **members)
        self._unsent += line
        deadline = time.monotonic() + self._timeout + patience
        while (answer := self._conversation.take(tag)) is None:
            if not self._turn(deadline):
                self._conversation.forget(tag)
                raise ReplyTimeout(f"the gateway did not answer {op} within {self._timeout + patience:g} seconds")
        return answer

    def _turn(self, deadline: float | None) -> bool:
        """Write what the gateway takes and read what has come, waiting for either; False after the deadline.

        Both at once: a gateway that waits for us to read does not read either.
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
            sent = len(self._unsent)  # nobody reads it any more; the last word may be there to read
        del self._unsent[:sent]

    def _read(self) -> bytes:
        try:
            return self._socket.recv(_READ)
        except ConnectionResetError:
            return b""


def gateway_path(path: str | None) -> str:
    """Where the gateway listens: `path`, or as configured; GatewayClosed if it is configured not to listen."""
    path = Config.load().listen if path is None else path
    if not path:
        raise GatewayClosed("there is no gateway: msgd:listen is set to nothing")
    return path


def no_gateway(path: str, error: OSError) -> GatewayClosed:
    """What to raise if the gateway cannot be reached."""
    if error.errno == errno.EAGAIN:
        return GatewayClosed(f"{path}: so many wait to be let in that there was no room to wait in time")
    hint = "; is msgd running?" if error.errno in (errno.ENOENT, errno.ECONNREFUSED) else ""
    return GatewayClosed(f"{path}: {error.strerror}{hint}")


def wire_address(to: Destination) -> int | str:
    """A destination as the protocol has it."""
    return str(to) if isinstance(to, ServerID) else to


def delivered(answer: Mapping[str, object]) -> int:
    """The number in the answer to send_all."""
    number: int = Members(dict(answer)).take_number("delivered", 0, 1 << 31)
    return number


def answering_message(answer: Mapping[str, object]) -> Message:
    """The message in the answer to a call."""
    message = answer.get("answer")
    if not isinstance(message, dict):
        raise MalformedMessage("the gateway's answer to a call holds no message")
    return read_message(message)


def listed_processes(answer: Mapping[str, object]) -> list[ServerID]:
    """The processes in the answer to names."""
    return _server_ids(answer.get("processes"))


def listed_names(answer: Mapping[str, object]) -> dict[str, list[ServerID]]:
    """The names in the answer to names."""
    names = answer.get("names")
    if not isinstance(names, dict):
        raise MalformedMessage("the gateway's answer to names holds no names")
    return {name: _server_ids(ids) for name, ids in names.items()}


def _server_ids(listed: object) -> list[ServerID]:
    if not isinstance(listed, list):
        raise MalformedMessage("the gateway's answer to names holds something else than a list of processes")
    return [Members({"process": one}).take_server_id("process") for one in listed]


def connect(path: str, timeout: float) -> socket.socket:
    """A socket connected to the gateway, which does not block; OSError if nobody listens, or has room in `timeout`.

    Where many wait to be let in, a connect() that does not block fails at once, and asyncio takes that for a success,
    as Python does where a signal has come in between.  So this one blocks, and the kernel says whether it is connected.
    """
    deadline = time.monotonic() + timeout
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.setblocking(timeout > 0)
        while not _is_connected(connected):
            left = max(_SOON, deadline - time.monotonic())
            set_send_timeout(connected, left)
            connected.connect(path)
        connected.setblocking(False)
    except BaseException:
        connected.close()
        raise
    return connected


def _is_connected(one: socket.socket) -> bool:
    try:
        one.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True
