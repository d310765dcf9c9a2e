# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How a client reads the answers of the gateway, and writes destinations."""

from __future__ import annotations

from collections.abc import Mapping

from msgd.errors import MalformedMessage
from msgd.wire.gateway.members import Members
from msgd.wire.gateway.replies import read_message
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

Destination = ServerID | int | str
Type = int | str


def wire_address(to: Destination) -> int | str:
    """A destination as the protocol writes it."""
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
        raise MalformedMessage("the gateway's answer to names holds something other than a list of processes")
    return [Members({"process": one}).take_server_id("process") for one in listed]
