# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The command idmap: make smbd forget a mapping, and perhaps end the sessions that use it."""

from __future__ import annotations

from collections.abc import Sequence

from msgd.tools.msgcontrol.command import Command, Request
from msgd.wire.control import pack_text
from msgd.wire.message_types import MessageType

_TYPES = {"delete": MessageType.ID_CACHE_DELETE, "kill": MessageType.ID_CACHE_KILL}


def _make(arguments: Sequence[str], reply_type: int | None) -> Request:
    message_type = _TYPES.get(arguments[0].lower())
    if message_type is None or reply_type is not None:
        raise ValueError("it is delete or kill, then 'UID 1000', 'GID 100' or a SID, or nothing for all")
    return Request(message_type, pack_text(arguments[1]) if arguments[1:] else b"")


IDMAP = Command(
    "idmap",
    "make smbd forget all mappings, or the ID that follows; kill also ends the sessions that use it",
    arguments=("delete|kill", "[ID]"),
    make=_make,
)
