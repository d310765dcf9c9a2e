# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How a client reads the answers of the gateway, and writes destinations."""

from __future__ import annotations

from collections.abc import Mapping

from msgd.errors import MalformedMessage, MsgdError, TransportError
from msgd.messaging.arguments import Destination, Type, message_type_number
from msgd.messaging.requests import reply_type_of
from msgd.pubsub.events import Event, Gap, GapReason, Publication
from msgd.results import Broadcast
from msgd.wire.gateway.limits import MAX_TIMEOUT
from msgd.wire.gateway.members import Members
from msgd.wire.gateway.replies import ERRORS, Missed, Published, read_message, write_published
from msgd.wire.header import Message
from msgd.wire.pubsub import Data, Kind, pack_data, topic_bytes
from msgd.wire.server_id import ServerID


def wire_address(dst: Destination) -> int | str:
    """A destination as the protocol writes it."""
    return str(dst) if isinstance(dst, ServerID) else dst


def longest(timeout: float | None) -> float:
    """A timeout in seconds, as the protocol has it: None, for ever, is the longest that it knows."""
    return MAX_TIMEOUT if timeout is None else timeout


def answer_type(message_type: Type, reply_type: Type | None) -> Type:
    """The type that answers a request: the one given, or Samba's; TypeError if neither is known."""
    return reply_type_of(message_type_number(message_type), None) if reply_type is None else reply_type


def broadcast_result(answer: Mapping[str, object]) -> Broadcast:
    """What the answer to send_all says."""
    number: int = Members(dict(answer)).take_number("delivered", 0, 1 << 31)
    return Broadcast(number, _failures(answer))


def publication_members(topic: str, data: Data) -> Mapping[str, object]:
    """What is published, as the protocol writes it.  Raises TypeError and ValueError for what cannot be published."""
    topic_bytes(topic)
    kind, packed = pack_data(data)
    return {"topic": topic, **write_published(packed if kind is Kind.BYTES else data)}


def publication_result(answer: Mapping[str, object]) -> Publication:
    """What the answer to publish says."""
    number: int = Members(dict(answer)).take_number("delivered", 0, 1 << 31)
    acked, nodes = answer.get("acked", {}), answer.get("nodes", {})
    if not isinstance(acked, dict) or not all(type(callbacks) is int for callbacks in acked.values()):
        raise MalformedMessage("the gateway's answer to publish does not say who has acknowledged")
    if not isinstance(nodes, dict):
        raise MalformedMessage("the gateway's answer to publish does not say which nodes it is about")
    outcomes: dict[str, int | MsgdError] = {**acked, **_errors(answer)}
    here = {_pid(text): outcome for text, outcome in outcomes.items() if ":" not in text}
    return Publication(
        number,
        {pid: outcome for pid, outcome in here.items() if isinstance(outcome, MsgdError)},
        {_pid(node): TransportError(str(why)) for node, why in nodes.items()},
        acked={pid: outcome for pid, outcome in here.items() if not isinstance(outcome, MsgdError)},
        elsewhere={_server_id(text): outcome for text, outcome in outcomes.items() if ":" in text},
    )


def listed_topics(answer: Mapping[str, object]) -> dict[int, list[str]]:
    """The topics in the answer to topics, by pid."""
    topics = answer.get("topics")
    if not isinstance(topics, dict) or not all(isinstance(one, list) for one in topics.values()):
        raise MalformedMessage("the gateway's answer to topics holds no topics")
    return {_pid(pid): [str(topic) for topic in one] for pid, one in topics.items()}


def event_of(published: Published) -> Event:
    """The event that a publication is to a subscriber."""
    return Event(published.topic, published.data, published.src)


def gap_of(missed: Missed) -> Gap:
    """The gap that the gateway has told; one for a reason that only a newer gateway knows is a gap, too."""
    return Gap(GapReason.__members__.get(missed.reason.upper(), GapReason.MISSING), missed.number)


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
        raise MalformedMessage("the gateway's answer to names holds something other than a list of processes")
    return [_server_id(one) for one in listed]


def _server_id(text: object) -> ServerID:
    server_id: ServerID = Members({"process": text}).take_server_id("process")
    return server_id


def _failures(answer: Mapping[str, object]) -> dict[int, MsgdError]:
    return {_pid(pid): error for pid, error in _errors(answer).items()}


def _errors(answer: Mapping[str, object]) -> dict[str, MsgdError]:
    """Why processes were not reached: an error for each code, with the reason where the gateway gives it."""
    failures, reasons = answer.get("failures"), answer.get("reasons", {})
    if not isinstance(failures, dict) or not isinstance(reasons, dict):
        raise MalformedMessage("the gateway's answer holds no failures")
    return {one: ERRORS.get(str(code), TransportError)(str(reasons.get(one, code))) for one, code in failures.items()}


def _pid(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise MalformedMessage(f"the gateway's answer has {text[:20]!r} in place of a pid")
    return int(text)
