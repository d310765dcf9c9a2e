"""Lines with one JSON object each, as the gateway and its clients exchange them: the form, not the meaning.

A line is UTF-8, an object, and ends with a newline (the last one before the end of the stream need not).  What comes
from the other side is refused with MalformedMessage: other JSON values, objects with the same member twice, numbers
JSON does not know (NaN), text that is not Unicode, nesting that is too deep.

A message's data stands in the member `text` if it is UTF-8 without control characters (tabs, line ends and one NUL at
its very end may be there), else as base64 in the member `base64`; so a line is at most about twice as long as the
data, whatever the data is.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from msgd.errors import MalformedMessage
from msgd.wire.message_types import TYPE_MAX, type_number
from msgd.wire.server_id import ServerID

_PLAIN_TEXT = re.compile(rb"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*\x00?")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half of a surrogate pair, which in a line of UTF-8 can only stand like this; the other half may be there, or not."""
_SHOWN = 64
"""Characters of what was wrong that a complaint repeats."""

_REQUIRED: Any = object()


class LineReader:
    """Cuts what comes in into lines: feed() it, then take next_line() until that is None.

    It holds at most `max_bytes`, which may be set to something else, and what one feed() brings.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = bytearray()
        self._searched = 0

    @property
    def is_full(self) -> bool:
        """Whether it holds as much as a line may have, or more."""
        return len(self._buffer) >= self.max_bytes

    def feed(self, data: bytes) -> None:
        """Take in what was read."""
        self._buffer += data

    def next_line(self) -> bytes | None:
        """The next line without its newline, None if there is no whole one yet; MalformedMessage if it is too long."""
        end = self._buffer.find(b"\n", self._searched)
        self._searched = len(self._buffer)
        if (end if end >= 0 else len(self._buffer)) > self.max_bytes:
            raise MalformedMessage(f"the line is longer than {self.max_bytes} bytes")
        return None if end < 0 else self._take(end, end + 1)

    def last_line(self) -> bytes | None:
        """At the end of the stream, after the last next_line(): what came without a newline, None if nothing did."""
        return self._take(len(self._buffer), len(self._buffer)) if self._buffer else None

    def _take(self, end: int, next_start: int) -> bytes:
        line = bytes(self._buffer[:end])
        del self._buffer[:next_start]
        self._searched = 0
        return line


def write_object(members: Mapping[str, object]) -> bytes:
    """The object as a line, with its newline; what is no Unicode (a path's or a name's bytes) is a `?` in it."""
    return json.dumps(members, ensure_ascii=False).encode(errors="replace") + b"\n"


def read_object(line: bytes) -> Members:
    """The members of the object in a line."""
    try:
        value = _DECODER.decode(line.decode())
        if _SURROGATE.search(line):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise MalformedMessage("not JSON: half of a surrogate pair; other bytes than UTF-8 go as base64") from None
    except (ValueError, RecursionError) as error:  # ValueError: UnicodeDecodeError, JSONDecodeError, numbers too long
        raise MalformedMessage(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise MalformedMessage("not a JSON object: {} has to be around the line")
    return Members(value)


def write_data(data: bytes) -> dict[str, str]:
    """The member that holds a message's data; none for no data."""
    if not data:
        return {}
    if _PLAIN_TEXT.fullmatch(data):
        try:
            return {"text": data.decode()}
        except UnicodeDecodeError:
            pass  # then it goes as the bytes it is
    return {"base64": base64.b64encode(data).decode()}


class Members:
    """The members of an object that came in: each take_...() removes one and checks it.

    All of them raise MalformedMessage, with the member's name.  A member that may be missing has a default.
    """

    def __init__(self, members: dict[str, object]) -> None:
        self._members = members

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """The member as it is."""
        value = self._members.pop(name, default)
        if value is _REQUIRED:
            raise MalformedMessage(f"the member {name!r} is missing")
        return value

    def take_text(self, name: str, default: Any = _REQUIRED, most: int = 1 << 16) -> Any:
        """A string of at most `most` characters, or the default."""
        value = self.take(name, default)
        if value is not default and not (isinstance(value, str) and len(value) <= most):
            raise MalformedMessage(f"{name}: a string of at most {most} characters is needed")
        return value

    def take_number(self, name: str, least: int, most: int, default: Any = _REQUIRED) -> Any:
        """A whole number, or the default."""
        value = self.take(name, default)
        if value is not default and not (type(value) is int and least <= value <= most):
            raise MalformedMessage(f"{name}: a whole number from {least} to {most} is needed")
        return value

    def take_seconds(self, name: str, most: float, default: float) -> float:
        """A time in seconds, from 0 on."""
        value = self.take(name, default)
        if not (type(value) in (int, float) and 0 <= value <= most):
            raise MalformedMessage(f"{name}: a number of seconds from 0 to {most:g} is needed")
        return float(value)

    def take_server_id(self, name: str, default: Any = _REQUIRED) -> Any:
        """A ServerID: a pid, or `PID`, `PID.TASK` or `PID.TASK/UNIQUE`."""
        value = self.take(name, default)
        if value is default:
            return default
        if type(value) not in (int, str):
            raise MalformedMessage(f"{name}: a pid or a server id as a string is needed")
        try:
            return ServerID.of(value)
        except ValueError as error:
            raise MalformedMessage(f"{name}: {_short(str(error))}") from None

    def take_type(self, name: str, default: Any = _REQUIRED) -> Any:
        """A message type, by name or number."""
        value = self.take(name, default)
        return value if value is default else _message_type(name, value)

    def take_types(self, name: str, most: int) -> tuple[int, ...]:
        """One message type, or a list of 1 to `most` of them."""
        value = self.take(name)
        values = value if isinstance(value, list) else [value]
        if not 0 < len(values) <= most:
            raise MalformedMessage(f"{name}: a message type or a list of 1 to {most} of them is needed")
        return tuple(_message_type(name, one) for one in values)

    def take_data(self) -> bytes:
        """A message's data: the member `text` or `base64`, or neither for no data."""
        if "text" in self and "base64" in self:
            raise MalformedMessage("text and base64: one of the two is needed, not both")
        text, encoded = self.take("text", ""), self.take("base64", "")
        if not isinstance(text, str) or not isinstance(encoded, str):
            raise MalformedMessage(f"{'base64' if isinstance(text, str) else 'text'}: a string is needed")
        try:
            decoded = base64.b64decode(encoded, validate=True)
        except ValueError as error:  # binascii.Error, or not ASCII
            raise MalformedMessage(f"base64: {error}") from None
        return decoded or text.encode()

    def take_rest(self) -> dict[str, object]:
        """All that nobody has taken."""
        rest, self._members = self._members, {}
        return rest

    def expect_no_more(self) -> None:
        """Refuse members that nobody has taken: most likely a name is mistyped."""
        if self._members:
            raise MalformedMessage(f"unknown member {_short(next(iter(self._members)))!r}")


def _message_type(name: str, value: object) -> int:
    if type(value) is int and 0 <= value <= TYPE_MAX:
        return value
    if isinstance(value, str):
        try:
            return type_number(value)
        except ValueError as error:
            raise MalformedMessage(f"{name}: {error}") from None
    raise MalformedMessage(f"{name}: a message type's name, or its number (0 to {TYPE_MAX:#x}) is needed")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique_members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member is there twice")
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_members, parse_constant=_refuse_constant)
