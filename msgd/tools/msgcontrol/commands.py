# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The table of msgcontrol's commands.

The parsing of arguments, the messages, the printing of answers and the help text are all derived from it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgd.config.kinds import LogLevel
from msgd.programs.debug_levels import read_text, write_text
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType

_NUMBER = struct.Struct("<I")


@dataclass(frozen=True)
class Command:
    """One command.

    `type` is the type of the message to send.  `arguments` names the arguments, all of which are required.  `payload`
    makes the message's data from them; it raises ValueError with the reason if it cannot.  `answer` is the type of the
    answer to wait for, or None if there is none; `show` makes the line that is printed for an answer.
    """

    name: str
    help: str
    type: MessageType
    arguments: tuple[str, ...] = ()
    payload: Callable[[Sequence[str]], bytes] = lambda arguments: b""
    answer: MessageType | None = None
    show: Callable[[Message], str] = lambda message: ""

    @property
    def usage(self) -> str:
        """The command and its arguments, as they are typed."""
        return " ".join((self.name, *self.arguments))


def _debug_payload(arguments: Sequence[str]) -> bytes:
    LogLevel(arguments[0])
    return write_text(arguments[0])


def _show_pong(message: Message) -> str:
    return f"PONG from pid {message.src.process}"


def _show_debuglevel(message: Message) -> str:
    return f"PID {message.src.process}: {read_text(message.data)}"


def _show_number(message: Message) -> str:
    if len(message.data) != _NUMBER.size:
        return f"{len(message.data)} bytes that are not a number, from pid {message.src.process}"
    return str(*_NUMBER.unpack(message.data))


COMMANDS: tuple[Command, ...] = (
    Command(
        "ping",
        "ask whether the process answers",
        MessageType.PING,
        answer=MessageType.PONG,
        show=_show_pong,
    ),
    Command(
        "debug",
        "set the debug level: 3, or by class: 'all:3 msgd:5'",
        MessageType.DEBUG,
        arguments=("LEVEL",),
        payload=_debug_payload,
    ),
    Command(
        "debuglevel",
        "show the debug levels",
        MessageType.REQ_DEBUGLEVEL,
        answer=MessageType.DEBUGLEVEL,
        show=_show_debuglevel,
    ),
    Command(
        "num-children",
        "ask msgd or smbd how many processes serve its clients",
        MessageType.SMB_TELL_NUM_CHILDREN,
        answer=MessageType.SMB_NUM_CHILDREN,
        show=_show_number,
    ),
    Command(
        "reload-config",
        "make the process reload smb.conf",
        MessageType.SMB_CONF_UPDATED,
    ),
    Command(
        "shutdown",
        "make the process shut down",
        MessageType.SHUTDOWN,
    ),
)
