# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How a client reads the answers of the gateway, and writes destinations."""

from __future__ import annotations

from collections.abc import Mapping

from msgd.errors import MalformedMessage, TransportError
from msgd.messaging.arguments import Destination, Type, message_type_number
from msgd.messaging.requests import reply_type_of
from msgd.results import Broadcast
from msgd.wire.gateway.limits import MAX_TIMEOUT
from msgd.wire.gateway.members import Members
from msgd.wire.gateway.replies import ERRORS, read_message
from msgd.wire.header import Message
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
    failures = answer.get("failures")
    if not isinstance(failures, dict):
        raise MalformedMessage("the gateway's answer to send_all holds no failures")
    return Broadcast(number, {int(pid): ERRORS.get(code, TransportError)(code) for pid, code in failures.items()})


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
    return [Members({"process": one}).take_server_id("process") for one in listed]
