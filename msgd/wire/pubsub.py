# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Publications, the acknowledgements of their subscribers, and the lists of topics (msgd's own formats).

All numbers are little-endian.

    PUBLISH   u8 version = 1, u8 kind of the data, u16 length of the topic, u32 slot, u64 table, u64 number;
              then the topic in UTF-8, and the data up to the end
    ACK       u8 version = 1, u8 outcome, u16 length of the text, u32 callbacks that have run; then the text in UTF-8
    CHECK     nothing: a process sends it to itself
    ASK       nothing: which topics do you subscribe to?
    TOPICS    a JSON array of strings: the answer to ASK

and between the nodes of a cluster (pubsub/elsewhere.py):

    HELLO     nothing: the sender subscribes from now on, and asks for NUMBERS
    NUMBERS   u8 version = 1, 3 bytes unused, u32 count, u64 table, u64 milliseconds since the last publication in it;
              then, for each slot in which something has been published, u32 slot, u64 number
    ROLL      nothing: which processes of your node subscribe?
    MEMBERS   u8 version = 1, 3 bytes unused, u32 count; then, for each of these, u64 pid, u64 unique id

`table` and `slot` say whose number it is: publications of a slot are numbered without a break, whichever process has
the slot (pubsub/table.py).

Rule 1.  Each length is compared with what is there before anything is made of it.
Rule 2.  The data is decoded only for those who want it: most receivers filter by topic.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from msgd.errors import MalformedMessage
from msgd.wire.message_types import PUBSUB_BLOCK
from msgd.wire.server_id import PID_MAX

_FIRST_TYPE = PUBSUB_BLOCK << 8
PUBLISH, ACK, CHECK, ASK, TOPICS, HELLO, NUMBERS, ROLL, MEMBERS = range(_FIRST_TYPE, _FIRST_TYPE + 9)
"""The message types, all of the class PUBSUB."""

TOPIC_MAX = 1024
"""The most bytes of a topic in UTF-8."""

WILDCARDS = frozenset("*?")
"""The characters that make a pattern of a topic; they are never in a topic itself."""

_VERSION = 1
_PUBLISH = struct.Struct("<BBHIQQ")
_ACK = struct.Struct("<BBHI")
_NUMBERS = struct.Struct("<B3xIQQ")
_NUMBER = struct.Struct("<IQ")
_MEMBERS = struct.Struct("<B3xI")
_MEMBER = struct.Struct("<QQ")
HEADER_SIZE = _PUBLISH.size
"""Bytes of a publication besides its topic and its data."""

_TEXT_MAX = 1000
"""Bytes of text in an acknowledgement."""

_TOPICS_MAX = 10_000
"""Topics in a list."""

Data = bytes | bytearray | memoryview | str | dict[str, Any] | list[Any] | tuple[Any, ...] | int | float | bool | None
"""What can be published: bytes, text, or what JSON can say."""


class Kind(enum.IntEnum):
    """What the data of a publication is, so that it comes out as what it went in."""

    BYTES = 0
    TEXT = 1
    JSON = 2


_KINDS = tuple(Kind)


class Outcome(enum.IntEnum):
    """What became of a publication in a process."""

    HANDLED = 0
    """All callbacks for the topic have returned; there may have been none."""
    FAILED = 1
    """A callback has raised."""
    DROPPED = 2
    """A subscription had no room for it, or was closed before its turn."""


class Publish(NamedTuple):
    """A publication as it travels."""

    slot: int
    table: int
    number: int
    topic: str
    kind: Kind
    payload: bytes

    def data(self) -> Any:
        """The data, as it was published.  Raises MalformedMessage."""
        try:
            if self.kind is Kind.BYTES:
                return self.payload
            text = self.payload.decode()
            return text if self.kind is Kind.TEXT else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MalformedMessage(f"the data of a publication to {self.topic!r}: {error}") from None


class Numbers(NamedTuple):
    """How much has been published in a directory of another node.

    `quiet`: seconds since the last publication.  `by_slot`: the number of the last publication of each slot.
    """

    table: int
    quiet: float
    by_slot: Mapping[int, int]


class Ack(NamedTuple):
    """An acknowledgement: the outcome, how many callbacks have run, and what the first that failed has raised."""

    outcome: Outcome
    callbacks: int
    text: str = ""


def topic_bytes(topic: str) -> bytes:
    """A topic as it travels.  ValueError if it cannot be one, TypeError if it is no text."""
    if not isinstance(topic, str):
        raise TypeError(f"a topic is text, not {type(topic).__name__}")
    packed = topic.encode()
    if not 0 < len(packed) <= TOPIC_MAX:
        raise ValueError(f"a topic has 1 to {TOPIC_MAX} bytes, not {len(packed)}")
    if not topic.isprintable() or WILDCARDS & set(topic):
        raise ValueError(f"{topic[:64]!r} cannot be a topic: it has a control character, or `*` or `?` as patterns do")
    return packed


def check_pattern(topic: str) -> bool:
    """Whether this is a pattern, rather than a topic.  ValueError, TypeError if it can be neither."""
    if not isinstance(topic, str) or not WILDCARDS & set(topic):
        topic_bytes(topic)
        return False
    if len(topic.encode()) > TOPIC_MAX or not topic.isprintable():
        raise ValueError(f"{topic[:64]!r} is no pattern: it has more than {TOPIC_MAX} bytes, or a control character")
    return True


def pack_data(data: Data) -> tuple[Kind, bytes]:
    """The kind and the bytes of what is published.  TypeError and ValueError for what JSON cannot say."""
    if isinstance(data, bytes):
        return Kind.BYTES, data
    if isinstance(data, str):
        return Kind.TEXT, data.encode()
    if isinstance(data, bytearray | memoryview):
        return Kind.BYTES, bytes(data)
    return Kind.JSON, json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def pack_publish(slot: int, table: int, number: int, topic: bytes, kind: Kind, payload: bytes) -> bytes:
    """A publication; `topic` is from topic_bytes(), `kind` and `payload` from pack_data()."""
    return b"".join((_PUBLISH.pack(_VERSION, kind, len(topic), slot, table, number), topic, payload))


def unpack_publish(data: bytes) -> Publish:
    """Read a publication.  Raises MalformedMessage."""
    if len(data) < HEADER_SIZE:
        raise MalformedMessage(f"a publication has at least {HEADER_SIZE} bytes, not {len(data)}")
    version, kind, length, slot, table, number = _PUBLISH.unpack_from(data)
    end = HEADER_SIZE + length
    if version != _VERSION or kind > Kind.JSON or not 0 < length <= TOPIC_MAX or end > len(data):
        raise MalformedMessage(f"a publication of version {version}, kind {kind}, with a topic of {length} bytes")
    try:
        topic = data[HEADER_SIZE:end].decode()
    except UnicodeDecodeError:
        raise MalformedMessage("the topic of a publication is no UTF-8") from None
    return Publish(slot, table, number, topic, _KINDS[kind], data[end:])


def pack_ack(ack: Ack) -> bytes:
    """An acknowledgement; a long text is cut."""
    text = ack.text.encode(errors="replace")[:_TEXT_MAX].decode(errors="ignore").encode()
    return _ACK.pack(_VERSION, ack.outcome, len(text), ack.callbacks) + text


def unpack_ack(data: bytes) -> Ack:
    """Read an acknowledgement.  Raises MalformedMessage."""
    if len(data) < _ACK.size:
        raise MalformedMessage(f"an acknowledgement has at least {_ACK.size} bytes, not {len(data)}")
    version, outcome, length, callbacks = _ACK.unpack_from(data)
    if version != _VERSION or outcome > Outcome.DROPPED or length > _TEXT_MAX or len(data) != _ACK.size + length:
        raise MalformedMessage(f"an acknowledgement of version {version}, outcome {outcome}, with {length} bytes")
    return Ack(Outcome(outcome), callbacks, data[_ACK.size :].decode(errors="replace"))


def pack_topics(topics: list[str]) -> bytes:
    """The answer to ASK; of a very long list, the beginning."""
    return json.dumps(topics[:_TOPICS_MAX], ensure_ascii=False).encode()


def unpack_topics(data: bytes) -> list[str]:
    """Read the answer to ASK.  Raises MalformedMessage."""
    if len(data) > _TOPICS_MAX * (TOPIC_MAX + 4):
        raise MalformedMessage(f"a list of topics with {len(data)} bytes")
    try:
        topics = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"a list of topics: {error}") from None
    if not isinstance(topics, list) or len(topics) > _TOPICS_MAX or not all(isinstance(one, str) for one in topics):
        raise MalformedMessage("a list of topics is an array of strings")
    return topics


def pack_numbers(numbers: Numbers) -> bytes:
    """What has been published here, for other nodes."""
    quiet = min(int(numbers.quiet * 1000), (1 << 64) - 1)
    head = _NUMBERS.pack(_VERSION, len(numbers.by_slot), numbers.table, quiet)
    return head + b"".join(_NUMBER.pack(*one) for one in numbers.by_slot.items())


def unpack_numbers(data: bytes, slots: int) -> Numbers:
    """Read it; `slots`: how many a table has.  Raises MalformedMessage."""
    if len(data) < _NUMBERS.size:
        raise MalformedMessage(f"numbers of publications have at least {_NUMBERS.size} bytes, not {len(data)}")
    version, count, table, quiet = _NUMBERS.unpack_from(data)
    if version != _VERSION or count > slots or len(data) != _NUMBERS.size + count * _NUMBER.size:
        raise MalformedMessage(f"numbers of publications, version {version}: {count} of them in {len(data)} bytes")
    by_slot = dict(_NUMBER.iter_unpack(data[_NUMBERS.size :]))
    if any(slot >= slots for slot in by_slot):
        raise MalformedMessage(f"the number of a publication in slot {max(by_slot)}")
    return Numbers(table, quiet / 1000, by_slot)


def pack_members(members: Collection[tuple[int, int]]) -> bytes:
    """The processes of this node that subscribe, each by its pid and its unique id."""
    return _MEMBERS.pack(_VERSION, len(members)) + b"".join(_MEMBER.pack(*one) for one in members)


def unpack_members(data: bytes) -> list[tuple[int, int]]:
    """Read the answer to ROLL.  Raises MalformedMessage."""
    if len(data) < _MEMBERS.size:
        raise MalformedMessage(f"a list of subscribers has at least {_MEMBERS.size} bytes, not {len(data)}")
    version, count = _MEMBERS.unpack_from(data)
    if version != _VERSION or len(data) != _MEMBERS.size + count * _MEMBER.size:
        raise MalformedMessage(f"a list of subscribers, version {version}: {count} of them in {len(data)} bytes")
    members = list(_MEMBER.iter_unpack(data[_MEMBERS.size :]))
    if not all(0 < pid <= PID_MAX for pid, _ in members):
        raise MalformedMessage("a list of subscribers with a number that is no pid")
    return members
