# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Samba's debug levels on top of Python's logging, and the messages that set and report them.

A process has debug classes, each with a level from 0 to 10: `all` is Python's root logger, `msgd` is this package's.
A text such as `3`, `all:3 msgd:5` or `1 auth:5` sets them.  A level for `all` applies to every class that the text does
not name.  Classes of other programs are ignored.

    level   logged
    0       errors
    1, 2    warnings too: dropped messages, settings that take effect after a restart
    3, 4    what the program does: start, stop, reload, clean-up
    5-10    everything
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgd.config.kinds import LogLevel
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType

logger = logging.getLogger("msgd.debuglevel")

_LOGGERS = {"all": logging.getLogger(), "msgd": logging.getLogger("msgd")}
_WARNING_FROM, _INFO_FROM, _DEBUG_FROM = 1, 3, 5


class DebugLevels:
    """The debug classes of this process.  Creating the object sets their levels."""

    def __init__(self, level: LogLevel) -> None:
        self._levels = dict.fromkeys(_LOGGERS, 0)
        self.set(level)

    def __str__(self) -> str:
        return " ".join(f"{name}:{level}" for name, level in self._levels.items())

    def set(self, level: LogLevel) -> None:
        """Set the levels of the classes that the text names."""
        named = _levels_by_class(level)
        if "all" in named:
            self._levels = dict.fromkeys(self._levels, named["all"])
        self._levels.update((name, number) for name, number in named.items() if name in self._levels)
        for name, number in self._levels.items():
            _LOGGERS[name].setLevel(python_level(number))

    def serve(self, messaging: Messaging, before: Callable[[], None] = lambda: None) -> None:
        """Obey DEBUG and answer REQ_DEBUGLEVEL, as Samba's daemons do.  Call `before` before handling each."""

        def debug(message: Message) -> None:
            before()
            text = read_text(message.data)
            try:
                self.set(LogLevel(text))
            except ValueError as error:
                logger.error("DEBUG from %s: %r: %s; the debug levels stay unchanged", message.src, text, error)
            else:
                logger.info("debug levels set to %s by %s", self, message.src)

        def request(message: Message) -> None:
            before()
            messaging.reply(message, MessageType.DEBUGLEVEL, write_text(f"{self}\n"))  # smbcontrol prints it unchanged

        messaging.register(MessageType.DEBUG, debug)
        messaging.register(MessageType.REQ_DEBUGLEVEL, request)


def python_level(level: int) -> int:
    """The level of Python's logging that corresponds to a debug level."""
    if level >= _DEBUG_FROM:
        return logging.DEBUG
    if level >= _INFO_FROM:
        return logging.INFO
    return logging.WARNING if level >= _WARNING_FROM else logging.ERROR


def write_text(text: str) -> bytes:
    """Encode a string as Samba's handlers expect it: terminated by a NUL."""
    return text.encode("utf-8", "surrogateescape") + b"\0"


def read_text(data: bytes) -> str:
    """Decode the string in a message's data, up to its NUL.  Drop a final newline; replace the unprintable with `?`."""
    text = data.partition(b"\0")[0].decode("utf-8", "replace").removesuffix("\n")
    return "".join(character if character.isprintable() else "?" for character in text)


def _levels_by_class(level: LogLevel) -> dict[str, int]:
    words = (word.partition("@")[0].rpartition(":") for word in level.text.lower().split())
    return {name or "all": int(number) for name, _, number in words}
