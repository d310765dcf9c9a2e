# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The lines that the gateway sends: answers, refusals, events, and the last word (docs/gateway.md).

    {"ok": true, "op": OP, "id": ID, ...}                              the answer to a request
    {"ok": false, "op": OP, "id": ID, "error": CODE, "message": TEXT}  a request that is refused
    {"event": "message", "type": TYPE, "from": SERVER_ID, "to": SERVER_ID, "text" or "base64": DATA}
    {"event": "publication", "pattern": TOPIC, "topic": TOPIC, "from": SERVER_ID, "text", "base64" or "json": DATA}
    {"event": "gap", "reason": WORD, "missed": NUMBER, "message": TEXT}
    {"event": "bye", "error": CODE, "message": TEXT}                   the last line: the connection ends

CODE is one of a few words for programs, TEXT one line for people.  In Python each code is an error of msgd.errors.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

from msgd.errors import (
    GatewayClosed,
    HandlerFailed,
    MalformedMessage,
    MessageTooLarge,
    MsgdError,
    NoHandler,
    NoSuchProcess,
    NotAllowed,
    QueueFull,
    ReplyTimeout,
    TransportError,
)
from msgd.wire.gateway.json_lines import read_object, write_object
from msgd.wire.gateway.limits import TAG_LENGTH
from msgd.wire.gateway.members import Members, write_data
from msgd.wire.gateway.requests import Tag
from msgd.wire.header import Message
from msgd.wire.message_types import type_name
from msgd.wire.server_id import ServerID

ERRORS: Mapping[str, type[MsgdError]] = {
    "bad-request": MalformedMessage,
    "not-allowed": NotAllowed,
    "no-such-process": NoSuchProcess,
    "no-handler": NoHandler,
    "handler-failed": HandlerFailed,
    "message-too-large": MessageTooLarge,
    "queue-full": QueueFull,
    "reply-timeout": ReplyTimeout,
    "transport": TransportError,
}
"""The codes of refusals."""

TOO_MANY = "too-many"
TOO_LONG = "line-too-long"
STALLED = "not-reading"
IDLE = "idle"
STOPPED = "stopped"
FAILED = "failed"
BYES: Mapping[str, str] = {
    "not-allowed": "the user may not connect",
    TOO_MANY: "too many clients are connected",
    TOO_LONG: "a line was longer than allowed",
    STALLED: "the client did not read its backlog in time",
    IDLE: "the client said nothing and waited for nothing",
    STOPPED: "the gateway was told to end",
    FAILED: "the connection process could not go on",
}
"""The codes of last words, and what they mean."""


class Answer(NamedTuple):
    """A request was done; `members` are the contents of the answer."""

    tag: Tag
    members: Mapping[str, object]


class Refusal(NamedTuple):
    """A request was refused, and why."""

    tag: Tag
    error: MsgdError


class Event(NamedTuple):
    """A message has come in."""

    message: Message


class Published(NamedTuple):
    """Something was published to a topic that the client subscribes to, by this topic or pattern."""

    pattern: str
    topic: str
    src: ServerID
    data: Any


class Missed(NamedTuple):
    """The client may have missed publications, perhaps so many; the reason is a word of the gateway's."""

    reason: str
    number: int


class Bye(NamedTuple):
    """The gateway's last word: nothing follows it."""

    code: str
    text: str


Reply = Answer | Refusal | Event | Published | Missed | Bye


def error_code(error: MsgdError) -> str:
    """The code of the error that refuses a request."""
    return next((code for code, kind in ERRORS.items() if isinstance(error, kind)), "transport")


def write_answer(op: str, tag: Tag, members: Mapping[str, object]) -> bytes:
    """The line that answers a request."""
    return write_object({"ok": True, **_repeated(op, tag), **members})


def write_refusal(op: str | None, tag: Tag, error: MsgdError) -> bytes:
    """The line that refuses a request."""
    return write_object(
        {"ok": False, **_repeated(op, tag), "error": error_code(error), "message": _one_line(str(error))}
    )


def write_event(message: Message) -> bytes:
    """The line that reports a message."""
    return write_object({"event": "message", **write_message(message)})


def write_publication(pattern: str, topic: str, src: str, data: Any) -> bytes:
    """The line that reports a publication; `pattern` is what the client has subscribed to."""
    return write_object(
        {"event": "publication", "pattern": pattern, "topic": topic, "from": src, **write_published(data)}
    )


def write_published(data: Any) -> dict[str, object]:
    """The member that holds what is published: as bytes, text or JSON, whichever it is."""
    if isinstance(data, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(data).decode()}
    return {"text": data} if isinstance(data, str) else {"json": data}


def write_gap(reason: str, missed: int, text: str) -> bytes:
    """The line that says that publications may have been missed."""
    return write_object({"event": "gap", "reason": reason, "missed": missed, "message": text})


def write_bye(code: str, text: str) -> bytes:
    """The last line."""
    return write_object({"event": "bye", "error": code, "message": _one_line(text)})


def write_message(message: Message) -> dict[str, object]:
    """The members that describe a message."""
    return {
        "type": type_name(message.type),
        "from": str(message.src),
        "to": str(message.dst),
        **write_data(message.data),
    }


def read_reply(line: bytes) -> Reply:
    """The reply in a line of the gateway.  MalformedMessage if it is not one.

    Unknown members are ignored: a newer gateway may send more.
    """
    members = read_object(line)
    if members.take("ok", None) is True:
        tag: Tag = members.take("id", None)
        return Answer(tag, members.take_rest())
    event = members.take("event", None)
    if event == "message":
        return Event(read_message(members.take_rest()))
    if event == "publication":
        pattern, src = members.take_text("pattern"), members.take_server_id("from")
        topic, data = members.take_publication()
        return Published(pattern, topic, src, data)
    if event == "gap":
        return Missed(members.take_text("reason", most=TAG_LENGTH), members.take_number("missed", 0, 1 << 64))
    code, text = members.take_text("error", most=TAG_LENGTH), members.take_text("message")
    if event == "bye":
        return Bye(code, text)
    return Refusal(members.take("id", None), ERRORS.get(code, TransportError)(text))


def read_message(members: Mapping[str, object]) -> Message:
    """The message that these members describe.  MalformedMessage if they do not."""
    reader = Members(dict(members))
    return Message(
        reader.take_type("type"), reader.take_server_id("from"), reader.take_server_id("to"), reader.take_data()
    )


def last_word(bye: Bye) -> MsgdError:
    """The error that the gateway's last word becomes in a client."""
    kind = NotAllowed if bye.code == "not-allowed" else GatewayClosed
    return kind(f"the gateway has ended the connection ({bye.code}): {bye.text}")


def _repeated(op: str | None, tag: Tag) -> dict[str, object]:
    given = {"op": op, "id": tag}
    return {name: value for name, value in given.items() if value is not None}


def _one_line(text: str) -> str:
    return "; ".join(text.splitlines())
