# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Commands about profiling: what a process counts, and whether it counts."""

from __future__ import annotations

from collections.abc import Sequence

from msgd.errors import MalformedMessage
from msgd.tools.msgcontrol.command import Command, Refused
from msgd.wire.control import ProfileLevel, ProfileMode, pack_int, unpack_int
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType

_MODES = {mode.name.lower(): mode for mode in ProfileMode}

_SHOWN = {
    ProfileLevel.NOT_ENABLED: "not enabled",
    ProfileLevel.OFF: "off",
    ProfileLevel.COUNT: "count only",
    ProfileLevel.COUNT_AND_TIME: "count and time",
}


def _mode_payload(arguments: Sequence[str]) -> bytes:
    mode = _MODES.get(arguments[0].lower())
    if mode is None:
        raise Refused(f"unknown profile command {arguments[0]!r}; the commands are {', '.join(_MODES)}")
    return pack_int(mode)


def _show_level(message: Message) -> str:
    try:
        shown = _SHOWN[ProfileLevel(unpack_int(message.data))]
    except (MalformedMessage, ValueError):
        shown = "BOGUS"
    return f"Profiling {shown} on pid {message.src.pid}"


PROFILE = Command(
    "profile",
    "count what the process does: off, count, on (times too), flush (begin at 0)",
    MessageType.PROFILE,
    arguments=("MODE",),
    payload=_mode_payload,
)
PROFILELEVEL = Command(
    "profilelevel",
    "show whether the process counts",
    MessageType.REQ_PROFILELEVEL,
    answer=MessageType.PROFILELEVEL,
    show=_show_level,
)
