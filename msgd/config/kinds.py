# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The kinds of values that parameters have: how each is parsed, checked and formatted.

Rule 1. A bad value raises ValueError with a few words about what is wrong with it.  The caller, which knows the
        parameter and the line of the file, puts those in front.
Rule 2. A value of the wrong Python type is a bug of the calling program and raises TypeError.
Rule 3. Python programs may always pass text in smb.conf's syntax: `Config(max_message_size="16M")`.

The kinds are plain classes: each dataclass would cost every program almost a millisecond when it starts.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")

_TRUE = frozenset(("yes", "true", "1", "on"))
_FALSE = frozenset(("no", "false", "0", "off"))
_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,20}")
_SIZE = re.compile(r"([+-]?[0-9]{1,20}) ?([KMG]?)", re.IGNORECASE)
_SECONDS = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{0,20})?")
_LEVEL = re.compile(r"((?P<name>[^:@]+):)?(?P<level>[+-]?[0-9]{1,9})(@.*)?")
_SEPARATORS = re.compile(r"[\s,]+")
_TYPE_NUMBER = "(0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10})"
_TYPE_RULE = re.compile(f"-?([A-Za-z][A-Za-z0-9_]{{0,63}}|{_TYPE_NUMBER}(-{_TYPE_NUMBER})?)")
_NOT_IN_A_LINE = re.compile(r"[\0-\x1f\x7f]|^ | $|  |\\$")
_PORT = re.compile("[0-9]{1,5}")
_LARGEST_PORT = 65535
_LARGEST_UID = 0xFFFFFFFE

UNIX = "unix:"
"""The prefix of an address that is the path of a socket."""


class Kind(ABC, Generic[T]):
    """One kind of value, whose Python type is T.

    If `is_path`, smb.conf's substitutions (%h ...) are made in its text before it is parsed.
    """

    is_path = False

    @property
    @abstractmethod
    def description(self) -> str:
        """What a parameter of this kind accepts, in a few words for a manual: `yes or no`."""

    @abstractmethod
    def parse(self, text: str) -> T:
        """Return the value of a text from smb.conf; ValueError if it is not valid."""

    @abstractmethod
    def from_python(self, value: object) -> T:
        """Check and return a value that a Python program passed and that is not text.  Raises TypeError, ValueError."""

    @abstractmethod
    def format(self, value: T) -> str:
        """Return a text that parse() reads back as this value."""

    def check(self, value: object) -> T:
        """Return the value for what a Python program passed: text in smb.conf's syntax, or the Python type itself."""
        return self.parse(value) if isinstance(value, str) else self.from_python(value)


class SocketAddress(Kind[str]):
    """An address to listen on: `unix:` and an absolute path, or a numeric IP address and a port; or empty."""

    description = "unix:/path, 127.0.0.1:port or [::1]:port, or nothing"
    is_path = True

    def parse(self, text: str) -> str:
        if not text:
            return text
        if text.startswith(UNIX):
            return UNIX + AbsolutePath().parse(text.removeprefix(UNIX))
        import ipaddress  # slow to import, and rarely needed

        host, _, port = text.rpartition(":")
        try:
            is_version_6 = ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).version == 6
        except ValueError:
            raise ValueError(f"not {self.description}") from None
        if is_version_6 != (host.startswith("[") and host.endswith("]")):
            raise ValueError("an IPv6 address must be in brackets, and no other may be")
        if not _PORT.fullmatch(port) or int(port) > _LARGEST_PORT:
            raise ValueError(f"{port!r} is not a port")
        return text

    def from_python(self, value: object) -> str:
        raise _wrong_type("a str", value)

    def format(self, value: str) -> str:
        return value.replace("%", "%%")


class Boolean(Kind[bool]):
    """yes/no, true/false, 1/0 or on/off in any case."""

    description = "yes or no"

    def parse(self, text: str) -> bool:
        word = text.lower()
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        raise ValueError("not yes or no")

    def from_python(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise _wrong_type("a bool", value)
        return value

    def format(self, value: bool) -> str:
        return "yes" if value else "no"


class Number(Kind[int]):
    """A whole number from `minimum` to `maximum`, inclusive."""

    def __init__(self, minimum: int, maximum: int) -> None:
        self.minimum = minimum
        self.maximum = maximum

    @property
    def description(self) -> str:
        return f"a number from {self.format(self.minimum)} to {self.format(self.maximum)}"

    def parse(self, text: str) -> int:
        if not _WHOLE_NUMBER.fullmatch(text):
            raise ValueError("not a whole number")
        return self.from_python(int(text))

    def from_python(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong_type("an int", value)
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"not from {self.format(self.minimum)} to {self.format(self.maximum)}")
        return value

    def format(self, value: int) -> str:
        return str(value)


class NumberOrAutomatic(Number):
    """A whole number from `minimum` to `maximum`, or 0, which leaves the choice to the program."""

    @property
    def description(self) -> str:
        return f"{super().description}, or 0 for automatic"

    def from_python(self, value: object) -> int:
        return 0 if type(value) is int and value == 0 else super().from_python(value)


class Size(Number):
    """A number of bytes.  The suffixes K, M and G stand for powers of 1024."""

    @property
    def description(self) -> str:
        return f"a number of bytes, or of K, M or G, from {self.format(self.minimum)} to {self.format(self.maximum)}"

    def parse(self, text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError("not a size; a size is a number of bytes, or of K, M or G, as in 16M")
        return self.from_python(int(match[1]) * _SUFFIXES[match[2].upper()])

    def format(self, value: int) -> str:
        suffix = next((s for s in "GMK" if value and value % _SUFFIXES[s] == 0), "")
        return f"{value // _SUFFIXES[suffix]}{suffix}"


class Seconds(Kind[float]):
    """A time in seconds, possibly with a fraction, from `minimum` to `maximum`, inclusive."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum = minimum
        self.maximum = maximum

    @property
    def description(self) -> str:
        return f"seconds, from {self.format(self.minimum)} to {self.format(self.maximum)}"

    def parse(self, text: str) -> float:
        if not _SECONDS.fullmatch(text):
            raise ValueError("not a number of seconds")
        return self._in_range(float(text))

    def from_python(self, value: object) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise _wrong_type("a number of seconds", value)
        return self._in_range(value)

    def format(self, value: float) -> str:
        shortest = repr(float(value))  # not the twenty digits of the binary fraction: 0.01
        return (f"{value:.20f}" if "e" in shortest else shortest).rstrip("0").rstrip(".")

    def _in_range(self, value: float) -> float:
        if not self.minimum <= value <= self.maximum:  # written so that NaN is refused
            raise ValueError(f"not from {self.format(self.minimum)} to {self.format(self.maximum)} seconds")
        return float(value)


class AbsolutePath(Kind[str]):
    """The absolute path of a file or directory; it may be empty if `optional`."""

    is_path = True

    def __init__(self, optional: bool = False) -> None:
        self.optional = optional

    @property
    def description(self) -> str:
        return "an absolute path, or nothing" if self.optional else "an absolute path"

    def parse(self, text: str) -> str:
        if not text and self.optional:
            return text
        if not text.startswith("/"):
            raise ValueError("not an absolute path")
        if _NOT_IN_A_LINE.search(text):
            raise ValueError(
                "a line of smb.conf cannot hold this path (control characters, or blanks in a row or at an end)"
            )
        return text

    def from_python(self, value: object) -> str:
        if not isinstance(value, os.PathLike):
            raise _wrong_type("a path", value)
        return self.parse(os.fsdecode(value))

    def format(self, value: str) -> str:
        return value.replace("%", "%%")


class Choice(Kind[str]):
    """One of several words, in any case.  `choices` returns them, and `what` says in a word what they are.

    `left_out` returns words that are known and not among the choices, each with the reason.
    """

    def __init__(
        self, choices: Callable[[], tuple[str, ...]], what: str, left_out: Callable[[], Mapping[str, str]] = dict
    ) -> None:
        self.choices = choices
        self.what = what
        self.left_out = left_out

    @property
    def description(self) -> str:
        return f"one of {', '.join(self.choices())}"

    def parse(self, text: str) -> str:
        word = text.lower()
        if word not in self.choices():
            reason = self.left_out().get(word)
            because = f" ({reason})" if reason else ""
            raise ValueError(f"not {self.what}{because}; {self.what}: {', '.join(self.choices()) or 'none'}")
        return word

    def from_python(self, value: object) -> str:
        raise _wrong_type("a str", value)

    def format(self, value: str) -> str:
        return value


class LogLevel(int):
    """The log level in force for msgd, 0 to 10.  `text` is the whole value, with Samba's classes: `1 auth:5 msgd:3`."""

    text: str

    def __new__(cls, text: str) -> LogLevel:
        """Use the level of the class `msgd`, if there is one, or else the general level.

        Raises ValueError for other text.
        """
        levels: dict[str, int] = {}
        words = [word for word in _SEPARATORS.split(text) if word]
        for position, word in enumerate(words):
            match = _LEVEL.fullmatch(word)
            if match is None or (position > 0 and match["name"] is None):
                raise ValueError(
                    "not a log level; a log level is a number, then levels of classes, as in 1 auth:5 msgd:3"
                )
            levels[(match["name"] or "all").lower()] = int(match["level"])
        if not levels:
            raise ValueError("no log level is given")
        level = levels.get("msgd", levels.get("all", 0))
        if not 0 <= level <= 10:
            raise ValueError("not from 0 to 10")
        self = super().__new__(cls, level)
        self.text = " ".join(words)
        return self

    def __reduce__(self) -> tuple[type[LogLevel], tuple[str]]:
        """Let copy and pickle re-create it from its text."""
        return LogLevel, (self.text,)


class Level(Kind[LogLevel]):
    """A log level in Samba's syntax."""

    description = "a number from 0 to 10, which levels of single classes may follow, as in 1 auth:5 msgd:3"

    def parse(self, text: str) -> LogLevel:
        return LogLevel(text)

    def from_python(self, value: object) -> LogLevel:
        if isinstance(value, LogLevel):
            return value
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong_type("an int", value)
        return LogLevel(str(value))

    def format(self, value: LogLevel) -> str:
        return value.text


class Users(Kind[frozenset[int]]):
    """User names or uids, separated by commas or blanks.  The value is the set of uids."""

    description = "user names or uids, separated by commas or blanks"

    def parse(self, text: str) -> frozenset[int]:
        return frozenset(_uid(word) for word in _SEPARATORS.split(text) if word)

    def from_python(self, value: object) -> frozenset[int]:
        if not isinstance(value, Iterable) or isinstance(value, bytes):
            raise _wrong_type("user names or uids", value)
        return frozenset(_uid(user) for user in value)

    def format(self, value: frozenset[int]) -> str:
        return " ".join(str(uid) for uid in sorted(value))


class Groups(Kind[frozenset[int]]):
    """Group names or gids, separated by commas or blanks.  The value is the set of gids."""

    description = "group names or gids, separated by commas or blanks"

    def parse(self, text: str) -> frozenset[int]:
        return frozenset(_gid(word) for word in _SEPARATORS.split(text) if word)

    def from_python(self, value: object) -> frozenset[int]:
        if not isinstance(value, Iterable) or isinstance(value, bytes):
            raise _wrong_type("group names or gids", value)
        return frozenset(_gid(group) for group in value)

    def format(self, value: frozenset[int]) -> str:
        return " ".join(str(gid) for gid in sorted(value))


class TypeRules(Kind[tuple[str, ...]]):
    """Rules that select message types, separated by commas or blanks.  Each overrides those before it.

    A rule is `all`, the name of a type, its number (decimal, or hexadecimal with 0x), or a range of two numbers with a
    - between them.  A - in front of a rule excludes those types.  Only the form is checked here, because the names
    belong to msgd.wire, which this package does not import.
    """

    description = "message types: all, names, numbers, or ranges such as 0xF000-0xFFFF; a leading - excludes them"

    def parse(self, text: str) -> tuple[str, ...]:
        return self.from_python(word for word in _SEPARATORS.split(text) if word)

    def from_python(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, Iterable) or isinstance(value, bytes):
            raise _wrong_type("rules for message types", value)
        rules = tuple(value)
        for rule in rules:
            if not isinstance(rule, str):
                raise _wrong_type("a rule as a str", rule)
            if not _TYPE_RULE.fullmatch(rule):
                raise ValueError(f"{rule!r} is not all, a message type's name or number, or a range of numbers")
        return rules

    def format(self, value: tuple[str, ...]) -> str:
        return " ".join(value)


def _uid(user: object) -> int:
    """Return the uid of a user, given by name or by uid (as text or int); ValueError if there is no such user."""
    if isinstance(user, str) and not _WHOLE_NUMBER.fullmatch(user):
        try:
            return pwd.getpwnam(user).pw_uid
        except (KeyError, ValueError):  # ValueError: NUL bytes, or characters that no name can have
            raise ValueError(f"no user has the name {user!r}") from None
    if not isinstance(user, (str, int)) or isinstance(user, bool):
        raise _wrong_type("a user name or uid", user)
    uid = int(user)
    if not 0 <= uid <= _LARGEST_UID:
        raise ValueError(f"{uid} is not a uid")
    return uid


def _gid(group: object) -> int:
    """Return the gid of a group, given by name or by gid (as text or int); ValueError if it does not exist."""
    if isinstance(group, str) and not _WHOLE_NUMBER.fullmatch(group):
        try:
            return grp.getgrnam(group).gr_gid
        except (KeyError, ValueError):  # ValueError: NUL bytes, or characters that no name can have
            raise ValueError(f"no group has the name {group!r}") from None
    if not isinstance(group, (str, int)) or isinstance(group, bool):
        raise _wrong_type("a group name or gid", group)
    gid = int(group)
    if not 0 <= gid <= _LARGEST_UID:
        raise ValueError(f"{gid} is not a gid")
    return gid


def _wrong_type(wanted: str, value: object) -> TypeError:
    return TypeError(f"{wanted} is needed, not {type(value).__name__}")
