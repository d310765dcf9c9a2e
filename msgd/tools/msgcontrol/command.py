# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What a command of msgcontrol is: a row of the table, from which parsing, sending, printing and help are derived.

To add a command, write its row into a file of `commands/` and name it in the table there.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType
from msgd.wire.server_id import ServerID


class Refused(Exception):
    """The command is not sent: an argument is not what the receivers could use.  The text says why."""


class Request(NamedTuple):
    """What a command sends, worked out from its arguments; `answer` is the type of the answer to wait for."""

    type: int
    data: bytes = b""
    answer: int | None = None


class Way(enum.Enum):
    """How a command does its work."""

    MESSAGE = enum.auto()
    """It sends a message, and waits for an answer if there is one."""
    PIPE = enum.auto()
    """It sends a message with the end of a pipe, into which the receiver writes a text.  To one process only."""
    HERE = enum.auto()
    """It sends nothing; `here` does the work."""


class Done(NamedTuple):
    """What a command without a message has done: the line to print, and whether it succeeded."""

    line: str
    is_success: bool


def _no_data(arguments: Sequence[str]) -> bytes:
    """The data of a message that has none."""
    return b""


def ordinary_id(server_id: ServerID) -> str:
    """A server id as smbcontrol prints it: without the unique id."""
    return str(ServerID(server_id.pid, server_id.task_id, server_id.vnn))


def _show_nothing(message: Message) -> str:
    return ""


class Command(NamedTuple):
    """One command.

    `arguments` names the arguments; those in brackets may be left out.  `payload` makes the message's data from them:
    it raises ValueError for wrong usage, and Refused for an argument that smbcontrol would not send either.  `make`
    stands in for `type`, `payload` and `answer` where the arguments decide on all of them; its second argument is
    --reply-type.  `show` makes the text to print for an answer.

    `here` is what a command does that sends nothing.  It gets the pids that had files in the directory before this
    process joined it, since whoever joins removes what some of the dead have left.

    `before` is done before anything is sent.  `data_of` makes the data from the address of the sender.
    `is_answered_at_once`: a process that handles the type answers before it handles its next message.
    `is_answered_by_child`: a child of the process that was asked may answer for it.  `takes_one`: it is not for several
    destinations.
    """

    name: str
    help: str
    type: MessageType | None = None
    arguments: tuple[str, ...] = ()
    payload: Callable[[Sequence[str]], bytes] = _no_data
    answer: MessageType | None = None
    show: Callable[[Message], str] = _show_nothing
    way: Way = Way.MESSAGE
    make: Callable[[Sequence[str], int | None], Request] | None = None
    here: Callable[[Messaging, Sequence[ServerID], frozenset[int]], Done] | None = None
    before: Callable[[Config], None] | None = None
    data_of: Callable[[ServerID], bytes] | None = None
    is_answered_at_once: bool = True
    is_answered_by_child: bool = False
    takes_one: bool = False

    @property
    def usage(self) -> str:
        """The command and the arguments that it must have, as they are typed; the help has the others."""
        return " ".join((self.name, *self.arguments[: self.least_arguments]))

    @property
    def least_arguments(self) -> int:
        """The number of arguments that are required."""
        return sum(not argument.startswith("[") for argument in self.arguments)

    @property
    def needs_directory(self) -> bool:
        """Whether the command needs more than the gateway can do: descriptors, a task of its own, files."""
        return self.way is not Way.MESSAGE or self.before is not None or self.data_of is not None

    def request(self, arguments: Sequence[str], reply_type: int | None) -> Request:
        """What to send.  Raises ValueError for wrong usage, and Refused."""
        if self.make is not None:
            return self.make(arguments, reply_type)
        if reply_type is not None:
            raise ValueError("--reply-type is for call")
        return Request(0 if self.type is None else self.type, self.payload(arguments), self.answer)
