# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The requests of the gateway's protocol: a class for each, and the table of their names (docs/gateway.md).

A request is an object with the member `op`, the members that this op needs, and optionally an `id` (a string of at
most 64 characters or a whole number), which the answer repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from msgd.errors import MalformedMessage
from msgd.wire.gateway.json_lines import read_object, write_object
from msgd.wire.gateway.limits import CALL_TIMEOUT, MAX_TIMEOUT, MAX_TYPES, TAG_LENGTH, TAG_NUMBER
from msgd.wire.gateway.members import Members
from msgd.wire.message_types import MessageType
from msgd.wire.server_id import ServerID

Tag = str | int | None
"""A request's id."""

ACKED = "acked"
"""The `wait` of a publication that is to be acknowledged."""


class Hello(NamedTuple):
    """Tell the connection's address, the version, and the limits."""


class Send(NamedTuple):
    """Send a message; if the receiver's queue is full, wait up to `timeout` seconds for room in it."""

    to: ServerID
    type: int
    data: bytes
    timeout: float


class SendAll(NamedTuple):
    """Send to every living process."""

    type: int
    data: bytes


class Register(NamedTuple):
    """Report each message of these types as an event from now on."""

    types: tuple[int, ...]


class Deregister(NamedTuple):
    """Stop reporting messages of these types."""

    types: tuple[int, ...]


class Call(NamedTuple):
    """Send a message and answer with the first message of the type `answer` that its receiver sends back."""

    to: ServerID
    type: int
    data: bytes
    answer: int
    timeout: float


class Cancel(NamedTuple):
    """Give up the calls whose requests had this id."""

    call: Tag


class Publish(NamedTuple):
    """Publish to a topic; if it is to be acknowledged, answer when all have handled it, or after `timeout` seconds."""

    topic: str
    data: Any
    is_acknowledged: bool
    timeout: float


class Subscribe(NamedTuple):
    """Report what is published to these topics and patterns from now on."""

    topics: tuple[str, ...]


class Unsubscribe(NamedTuple):
    """Stop reporting what is published to these."""

    topics: tuple[str, ...]


class ListTopics(NamedTuple):
    """List who subscribes to what: those that answer within `timeout` seconds."""

    timeout: float


class Names(NamedTuple):
    """List the processes and their names."""


class Ping(NamedTuple):
    """Check that the connection works."""


Request = (
    Hello
    | Send
    | SendAll
    | Register
    | Deregister
    | Call
    | Cancel
    | Publish
    | Subscribe
    | Unsubscribe
    | ListTopics
    | Names
    | Ping
)


class Asked(NamedTuple):
    """A request with what its answer repeats."""

    op: str
    tag: Tag
    request: Request


class BadRequest(MalformedMessage):
    """A line that is not a request; `op` and `tag` are as much of it as could be read."""

    def __init__(self, text: str, op: str | None, tag: Tag) -> None:
        super().__init__(text)
        self.op = op
        self.tag = tag


def _send(members: Members) -> Send:
    return Send(
        members.take_server_id("to"),
        members.take_type("type"),
        members.take_data(),
        members.take_seconds("timeout", MAX_TIMEOUT, default=0.0),
    )


def _call(members: Members) -> Call:
    return Call(
        members.take_server_id("to"),
        members.take_type("type"),
        members.take_data(),
        members.take_type("answer"),
        members.take_seconds("timeout", MAX_TIMEOUT, default=CALL_TIMEOUT),
    )


def _publish(members: Members) -> Publish:
    wait = members.take("wait", None)
    if wait not in (None, ACKED):
        raise MalformedMessage(f"wait: there is {ACKED!r} alone; leave it out to wait for nobody")
    if wait is None and "timeout" in members:
        raise MalformedMessage(f"timeout: it is for 'wait': {ACKED!r}")
    timeout = members.take_seconds("timeout", MAX_TIMEOUT, default=CALL_TIMEOUT)
    return Publish(*members.take_publication(), wait is not None, timeout)


def _ping(members: Members) -> Ping | Call:
    if "to" not in members:
        return Ping()
    to = members.take_server_id("to")
    timeout = members.take_seconds("timeout", MAX_TIMEOUT, default=CALL_TIMEOUT)
    return Call(to, MessageType.PING, members.take_data(), MessageType.PONG, timeout)


OPERATIONS: Mapping[str, Callable[[Members], Request]] = {
    "hello": lambda members: Hello(),
    "send": _send,
    "send_all": lambda members: SendAll(members.take_type("type"), members.take_data()),
    "register": lambda members: Register(members.take_types("types", MAX_TYPES)),
    "deregister": lambda members: Deregister(members.take_types("types", MAX_TYPES)),
    "call": _call,
    "cancel": lambda members: Cancel(_tag("call", members.take("call"))),
    "publish": _publish,
    "subscribe": lambda members: Subscribe(members.take_topics("topics", MAX_TYPES)),
    "unsubscribe": lambda members: Unsubscribe(members.take_topics("topics", MAX_TYPES)),
    "topics": lambda members: ListTopics(members.take_seconds("timeout", MAX_TIMEOUT, default=CALL_TIMEOUT)),
    "names": lambda members: Names(),
    "ping": _ping,
}
"""All requests, by the name in `op`."""


def read_request(line: bytes) -> Asked:
    """The request in a line (without its newline).  BadRequest if it is not one."""
    op: str | None = None
    tag: Tag = None
    try:
        members = read_object(line)
        tag = _tag("id", members.take("id")) if "id" in members else None
        op = members.take_text("op", most=TAG_LENGTH)
        if op not in OPERATIONS:
            raise MalformedMessage(f"op: {op!r} is none of {', '.join(OPERATIONS)}")
        request = OPERATIONS[op](members)
        members.expect_no_more()
    except MalformedMessage as error:
        raise BadRequest(str(error), op, tag) from None
    return Asked(op, tag, request)


def write_request(op: str, tag: Tag = None, data: Mapping[str, object] | None = None, **members: object) -> bytes:
    """The line of a request, with its newline.  Members that are None are left out; those of `data` may be None."""
    given = {"op": op, "id": tag, **members}
    return write_object({name: value for name, value in given.items() if value is not None} | dict(data or {}))


def _tag(name: str, value: object) -> str | int:
    """A tag that is checked; `name` is the member that it is the value of."""
    if isinstance(value, str) and len(value) <= TAG_LENGTH:
        return value
    if type(value) is int and abs(value) <= TAG_NUMBER:
        return value
    raise MalformedMessage(f"{name}: a string of at most {TAG_LENGTH} characters or a whole number is needed")
