# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""NOT_HANDLED: by this message a process says at once that it will not answer a request (msgd's own).

Data, 8 bytes, little-endian: u32 reason, u32 the type that was asked for.  It goes to task ids of requests only, so a
process of Samba's, which knows nothing of it, sees none: it logs an unknown type at most.
"""

from __future__ import annotations

import enum
import struct

from msgd.errors import MalformedMessage

NOT_HANDLED = 0x6D736764
"""The message type: "msgd" in ASCII, far from the numbers that Samba and programs give out."""

MONITOR = 0x6D736765
"""The type by which a monitor asks to be told of messages (monitor.py): the next number."""

FIRST_REQUEST_TASK = 0x80000000
"""Task ids from here up are those of requests in flight; contexts have lower ones."""

_REFUSAL = struct.Struct("<II")


class Reason(enum.IntEnum):
    """Why a request is not going to be answered."""

    NO_HANDLER = 1
    """The task is there and handles no message of this type."""
    NO_TASK = 2
    """The process is there and has no such task."""


def pack_refusal(reason: Reason, message_type: int) -> bytes:
    """The 8 bytes."""
    return _REFUSAL.pack(reason, message_type)


def unpack_refusal(data: bytes) -> tuple[Reason, int]:
    """The reason and the message type.  Raises MalformedMessage if it is no refusal."""
    try:
        reason, message_type = _REFUSAL.unpack(data)
        return Reason(reason), message_type
    except (struct.error, ValueError) as error:
        raise MalformedMessage(f"not a refusal: {error}") from None
