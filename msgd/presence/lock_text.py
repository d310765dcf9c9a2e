"""The text of a lock file: the unique id, which Samba reads, and the lines behind it, which are msgd's own.

    6694820154018993373
    type dgram
    classes GENERAL SMBD
    since 1767225600
    command worker.py

The first line is Samba's: the unique id in decimal and a newline; its readers take the digits up to there.  A further
line is a word, a blank and a value; nobody trips over a word that he does not know, nor over one that is missing.
A process whose file has the first line alone is one of Samba's: it hears every class of broadcast.
"""

from __future__ import annotations

import functools
import operator
import os
import sys
from typing import NamedTuple

from msgd.wire.message_types import MessageClass, class_names

TEXT_MAX = 512
"""Bytes of a lock file that are text; what Samba writes has at most 21."""

COMMAND_MAX = 64
"""Characters of a command that are kept: at most 256 bytes of UTF-8."""

_UNIQUE_ID_DIGITS = 20

_SAMBAS_TYPE = "dgram"
"""The messaging type of every Samba that writes a lock file."""


class Process(NamedTuple):
    """One process's entry: its pid, the unique id in its lock file, and the lines msgd keeps behind it."""

    pid: int
    unique_id: int
    lines: tuple[str, ...] = ()

    @property
    def classes(self) -> MessageClass:
        """The broadcast classes it listens to: all of them if it does not say."""
        text = self._value("classes")
        return MessageClass.ALL if text is None else _read_classes(text)

    @property
    def is_ours(self) -> bool:
        """Whether it is a process of msgd's, and not one of Samba's."""
        return self._value("classes") is not None

    @property
    def messaging_type(self) -> str:
        """The messaging type by which it is reached."""
        return self._value("type") or _SAMBAS_TYPE

    @property
    def since(self) -> int | None:
        """When it came, in seconds since the epoch; None if it does not say."""
        text = self._value("since") or ""
        return int(text) if text.isdecimal() and len(text) < 16 else None

    @property
    def command(self) -> str | None:
        """The program it runs, without its arguments; None if it does not say."""
        return self._value("command")

    def _value(self, word: str) -> str | None:
        """What the line that begins with `word` says."""
        prefix = f"{word} "
        return next((line.removeprefix(prefix) for line in self.lines if line.startswith(prefix)), None)


def describe(messaging_type: str, classes: MessageClass, since: float) -> tuple[str, ...]:
    """The lines of this process."""
    return (
        f"type {messaging_type}",
        f"classes {class_names(classes)}",
        f"since {int(since)}",
        f"command {_program()}",
    )


def format_text(unique_id: int, lines: tuple[str, ...]) -> bytes:
    """The text of a lock file; ValueError if it is too long."""
    text = "".join(f"{line}\n" for line in (unique_id, *lines)).encode()
    if len(text) > TEXT_MAX:
        raise ValueError(f"a lock file's text has at most {TEXT_MAX} bytes, not {len(text)}")
    return text


def parse_text(pid: int, text: bytes) -> Process | None:
    """The entry of process `pid`; None if the text does not begin with a unique id: the process is still starting."""
    first, newline, rest = text.partition(b"\n")
    if not newline or not first.isdigit() or len(first) > _UNIQUE_ID_DIGITS:
        return None
    lines = rest.rstrip(b"\n").decode(errors="replace").split("\n") if rest else ()
    return Process(pid, int(first), tuple(filter(None, lines)))


@functools.lru_cache(maxsize=64)
def _read_classes(text: str) -> MessageClass:
    """The classes that the text names; a word that is none of them is passed over."""
    named = (MessageClass.__members__.get(word) for word in text.split())
    return functools.reduce(operator.or_, filter(None, named), MessageClass(0))


def _program() -> str:
    """The name of the program this process runs: that of its script, or of the package behind `-m`."""
    path = sys.argv[0] if sys.argv else ""
    if os.path.basename(path) == "__main__.py":
        path = os.path.dirname(path)
    name = os.path.basename(path) if path not in ("", "-c") else os.path.basename(sys.executable)
    return "".join(character if character.isprintable() else "?" for character in name[:COMMAND_MAX])
