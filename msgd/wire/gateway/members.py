# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The members of a JSON object, taken one by one and checked.

A message's data is the member `text` if it is UTF-8 without control characters (tabs, line ends, and one NUL at the
very end are allowed), otherwise the member `base64`.  So a line is about twice as long as the data at most, whatever
the data is.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from msgd.errors import MalformedMessage
from msgd.wire.message_types import TYPE_MAX, type_number
from msgd.wire.pubsub import check_pattern, topic_bytes
from msgd.wire.server_id import ServerID

_PLAIN_TEXT = re.compile(rb"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*\x00?")
_SHOWN = 64
"""Characters of the offending text that an error message repeats."""

_REQUIRED: Any = object()


def write_data(data: bytes) -> dict[str, str]:
    """The member that holds a message's data; no member for no data."""
    if not data:
        return {}
    if _PLAIN_TEXT.fullmatch(data):
        try:
            return {"text": data.decode()}
        except UnicodeDecodeError:
            pass  # it goes as base64
    return {"base64": base64.b64encode(data).decode()}


class Members:
    """The members of a received object: each take method removes one member and checks it.

    Each raises MalformedMessage, with the member's name.  A member that is optional has a default.
    """

    def __init__(self, members: dict[str, object]) -> None:
        self._members = members

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """The member, unchecked."""
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
        """A time in seconds, 0 or more."""
        value = self.take(name, default)
        if not (type(value) in (int, float) and 0 <= value <= most):
            raise MalformedMessage(f"{name}: a number of seconds from 0 to {most:g} is needed")
        return float(value)

    def take_server_id(self, name: str) -> Any:
        """A ServerID: a pid, or `PID`, `PID.TASK` or `PID.TASK/UNIQUE`."""
        value = self.take(name)
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
            raise MalformedMessage("text and base64: give one of the two, not both")
        text, encoded = self.take("text", ""), self.take("base64", "")
        if not isinstance(text, str) or not isinstance(encoded, str):
            raise MalformedMessage(f"{'base64' if isinstance(text, str) else 'text'}: a string is needed")
        try:
            decoded = base64.b64decode(encoded, validate=True)
        except ValueError as error:  # binascii.Error, or not ASCII
            raise MalformedMessage(f"base64: {error}") from None
        return decoded or text.encode()

    def take_publication(self) -> tuple[str, Any]:
        """A topic, and the data for it: the member `text`, `base64` or `json`, or none of them for no data."""
        topic = _topic("topic", self.take("topic"), may_be_pattern=False)
        if "json" in self:
            if "text" in self or "base64" in self:
                raise MalformedMessage("json, text and base64: give one of them")
            return topic, self.take("json")
        is_text = "text" in self
        data = self.take_data()
        return topic, data.decode() if is_text else data

    def take_topics(self, name: str, most: int) -> tuple[str, ...]:
        """One topic or pattern, or a list of 1 to `most` of them."""
        value = self.take(name)
        values = value if isinstance(value, list) else [value]
        if not 0 < len(values) <= most:
            raise MalformedMessage(f"{name}: a topic or a list of 1 to {most} of them is needed")
        return tuple(_topic(name, one, may_be_pattern=True) for one in values)

    def take_rest(self) -> dict[str, object]:
        """The members that have not been taken."""
        rest, self._members = self._members, {}
        return rest

    def expect_no_more(self) -> None:
        """Refuse members that have not been taken: most likely a name is mistyped."""
        if self._members:
            raise MalformedMessage(f"unknown member {_short(next(iter(self._members)))!r}")


def _topic(name: str, value: object, *, may_be_pattern: bool) -> str:
    if not isinstance(value, str):
        raise MalformedMessage(f"{name}: a topic is a string")
    try:
        if check_pattern(value) and not may_be_pattern:
            topic_bytes(value)
    except ValueError as error:
        raise MalformedMessage(f"{name}: {_short(str(error))}") from None
    return value


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
