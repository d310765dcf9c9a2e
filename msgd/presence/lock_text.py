# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The text of a lock file: the unique id, which Samba reads too, and msgd's own lines after it.

    6694820154018993373
    type dgram
    classes GENERAL SMBD
    since 1767225600
    tasks 0-2 7
    command worker.py
    datagram 65536
    monitor yes

Rule 1. The first line is Samba's format: the unique id in decimal and a newline.  Its readers stop at the newline.
Rule 2. Each further line is a word, a space and a value.  A reader ignores words that it does not know, and does
    without those that are missing, so that versions of msgd can differ.
Rule 3. A process whose file has only the first line is one of Samba's.  It listens to every class of broadcast, and is
    reached by dgram.
Rule 4. `tasks` names the contexts of the process, so that a sender to another one is told at once.  The line is missing
    if the text would be too long with it, and from older versions; then nobody can tell.
Rule 5. Empty lines mean nothing.  A file with shared words is padded with them to TEXT_MAX bytes.
"""

from __future__ import annotations

import functools
import operator
import os
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

from msgd.wire.message_types import MessageClass, class_names
from msgd.wire.refusal import FIRST_REQUEST_TASK
from msgd.wire.server_id import ANY_UNIQUE_ID, ServerID

TEXT_MAX = 512
"""The most bytes of text in a lock file.  Samba writes at most 21."""

COMMAND_MAX = 64
"""Characters of a command's name that are kept; that is at most 256 bytes of UTF-8."""

_TASKS_MAX = 96
"""Bytes of the line of tasks.  With it, and the longest of all other lines, the text is shorter than TEXT_MAX."""

_TASKS = re.compile("([0-9]{1,10})(?:-([0-9]{1,10}))?", re.ASCII)

_UNIQUE_ID_DIGITS = 20
"""The most digits of a 64-bit number."""

_SAMBAS_TYPE = "dgram"
"""The messaging type of every version of Samba that writes lock files."""


class Process(NamedTuple):
    """A process's entry: its pid, the unique id in its lock file, and the lines after that."""

    pid: int
    unique_id: int
    lines: tuple[str, ...] = ()

    @property
    def classes(self) -> MessageClass:
        """The broadcast classes that it listens to; all of them if the file does not say."""
        text = self._value("classes")
        return MessageClass.ALL if text is None else _read_classes(text)

    @property
    def is_ours(self) -> bool:
        """Whether it is an msgd process rather than one of Samba's."""
        return self._value("classes") is not None

    @property
    def messaging_type(self) -> str:
        """The messaging type (transport) by which it is reached."""
        return self._value("type") or _SAMBAS_TYPE

    def has_task(self, task_id: int) -> bool:
        """Whether a message to this task id has a receiver, as far as the file tells.

        Requests in flight have task ids too, from FIRST_REQUEST_TASK up, and a broadcast goes to EVERY_TASK.
        """
        text = self._value("tasks")
        return text is None or task_id >= FIRST_REQUEST_TASK or any(task_id in one for one in _read_tasks(text))

    @property
    def since(self) -> int | None:
        """When it joined the directory, in seconds since the epoch; None if the file does not say."""
        text = self._value("since") or ""
        return int(text) if text.isdecimal() and len(text) < 16 else None

    @property
    def command(self) -> str | None:
        """The name of the program that it runs, without arguments; None if the file does not say."""
        return self._value("command")

    @property
    def longest_datagram(self) -> int:
        """The longest datagram that it reads, in bytes; 0 if the file does not say."""
        text = self._value("datagram") or ""
        return int(text) if text.isdecimal() and len(text) < 16 else 0

    @property
    def is_monitored(self) -> bool:
        """Whether it tells monitors of the messages that it receives (`msgd:monitor`)."""
        return self._value("monitor") == "yes"

    def is_addressed_by(self, server_id: ServerID) -> bool:
        """Whether an address with this pid means this process, and not an earlier or a later one with the same pid."""
        return server_id.unique_id in (self.unique_id, *ANY_UNIQUE_ID)

    def _value(self, word: str) -> str | None:
        """The value in the line that begins with `word`; None if there is no such line."""
        prefix = f"{word} "
        return next((line.removeprefix(prefix) for line in self.lines if line.startswith(prefix)), None)


def describe(
    messaging_type: str,
    classes: MessageClass,
    tasks: Iterable[int],
    since: float,
    longest_datagram: int = 0,
    *,
    allows_monitor: bool = False,
) -> tuple[str, ...]:
    """The lines for the lock file of this process.

    `since` is in seconds since the epoch, `longest_datagram` in bytes; 0 if the transport reads no datagrams.
    """
    named = f"tasks {_format_tasks(tasks)}"
    return (
        f"type {messaging_type}",
        f"classes {class_names(classes)}",
        f"since {int(since)}",
        *((named,) if len(named) <= _TASKS_MAX else ()),
        f"command {_program()}",
        *((f"datagram {longest_datagram}",) if longest_datagram else ()),
        *(("monitor yes",) if allows_monitor else ()),
    )


def format_text(unique_id: int, lines: tuple[str, ...]) -> bytes:
    """The text of a lock file.  Raises ValueError if it is longer than TEXT_MAX."""
    text = "".join(f"{line}\n" for line in (unique_id, *lines)).encode()
    if len(text) > TEXT_MAX:
        raise ValueError(f"a lock file's text has at most {TEXT_MAX} bytes, not {len(text)}")
    return text


def parse_text(pid: int, text: bytes) -> Process | None:
    """The entry of process `pid`; None if the text does not begin with a unique id, as while a process starts."""
    first, newline, rest = text.partition(b"\n")
    if not newline or not first.isdigit() or len(first) > _UNIQUE_ID_DIGITS:
        return None
    lines = rest.rstrip(b"\n").decode(errors="replace").split("\n") if rest else ()
    return Process(pid, int(first), tuple(filter(None, lines)))


@functools.lru_cache(maxsize=64)
def _read_classes(text: str) -> MessageClass:
    """The classes in the text; unknown words are ignored (Rule 2)."""
    named = (MessageClass.__members__.get(word) for word in text.split())
    return functools.reduce(operator.or_, filter(None, named), MessageClass(0))


def _format_tasks(tasks: Iterable[int]) -> str:
    """Task ids in order, those that follow each other as a range: `0-2 7`."""
    ranges: list[list[int]] = []
    for task_id in sorted(tasks):
        if ranges and task_id == ranges[-1][-1] + 1:
            ranges[-1][1:] = [task_id]
        else:
            ranges.append([task_id])
    return " ".join("-".join(map(str, one)) for one in ranges)


@functools.lru_cache(maxsize=64)
def _read_tasks(text: str) -> tuple[range, ...]:
    """The ranges of task ids in the text; words that are none are ignored (Rule 2)."""
    found = (_TASKS.fullmatch(word) for word in text.split())
    return tuple(range(int(one[1]), int(one[2] or one[1]) + 1) for one in found if one)


def _program() -> str:
    """The name of the program that this process runs: its script, or the package given to `-m`."""
    path = sys.argv[0] if sys.argv else ""
    if os.path.basename(path) == "__main__.py":
        path = os.path.dirname(path)
    name = os.path.basename(path) if path not in ("", "-c") else os.path.basename(sys.executable)
    return "".join(character if character.isprintable() else "?" for character in name[:COMMAND_MAX])
