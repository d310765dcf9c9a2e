# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Lines that hold one JSON object each: cutting a stream into lines, and reading and writing an object.

A line is UTF-8 and ends with a newline; the last line before the end of the stream may lack it.

MalformedMessage refuses input that is not one JSON object in the strict sense: other JSON values, an object with the
same member twice, numbers that JSON does not have (NaN), text that is not Unicode, nesting that is too deep,
integers of thousands of digits.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from msgd.errors import MalformedMessage
from msgd.wire.gateway.members import Members

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half of a surrogate pair: in UTF-8 it can only be written like this.  The other half may follow or be missing."""


class LineReader:
    """Cuts a stream into lines: feed() it, then call next_line() until it returns None.

    It holds `max_bytes`, which may be changed at any time, and the bytes of one feed() at most.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = bytearray()
        self._searched = 0

    @property
    def is_full(self) -> bool:
        """Whether it holds at least as many bytes as a line may have."""
        return len(self._buffer) >= self.max_bytes

    def feed(self, data: bytes) -> None:
        """Add the bytes that were read."""
        self._buffer += data

    def next_line(self) -> bytes | None:
        """The next line without its newline; None if none is complete.  Raises MalformedMessage if it is too long."""
        end = self._buffer.find(b"\n", self._searched)
        self._searched = len(self._buffer)
        if (end if end >= 0 else len(self._buffer)) > self.max_bytes:
            raise MalformedMessage(f"the line is longer than {self.max_bytes} bytes")
        return None if end < 0 else self._take(end, end + 1)

    def take_line(self, is_wanted: Callable[[bytes], bool]) -> bool:
        """Take out the first complete line that is wanted, wherever it is.  Returns whether there was one."""
        start = 0
        while (end := self._buffer.find(b"\n", start)) >= 0:
            if is_wanted(bytes(self._buffer[start:end])):
                del self._buffer[start : end + 1]
                self._searched = 0
                return True
            start = end + 1
        return False

    def last_line(self) -> bytes | None:
        """The bytes without a newline; None if there are none.

        Call it at the end of the stream, when next_line() is None.
        """
        return self._take(len(self._buffer), len(self._buffer)) if self._buffer else None

    def _take(self, end: int, next_start: int) -> bytes:
        line = bytes(self._buffer[:end])
        del self._buffer[:next_start]
        self._searched = 0
        return line


def write_object(members: Mapping[str, object]) -> bytes:
    """The object as a line, with its newline.  Bytes of a path or name that are not Unicode become `?`."""
    return json.dumps(members, ensure_ascii=False).encode(errors="replace") + b"\n"


def read_object(line: bytes) -> Members:
    """The members of the object in a line.  MalformedMessage if it holds no object."""
    if not line.strip():
        raise MalformedMessage("not JSON: the line is blank")
    if line.startswith(codecs.BOM_UTF8):
        raise MalformedMessage("not JSON: the line begins with a byte order mark; leave it out")
    try:
        value = _DECODER.decode(line.decode())
        if _SURROGATE.search(line):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise MalformedMessage("not JSON: half of a surrogate pair; bytes that are not UTF-8 go as base64") from None
    except (UnicodeDecodeError, json.JSONDecodeError, _NotJSON, RecursionError) as error:
        raise MalformedMessage(f"not JSON: {error}") from None
    except ValueError:  # of int(): it limits the digits, since reading them takes quadratic time
        raise MalformedMessage("not JSON: a number has too many digits") from None
    if not isinstance(value, dict):
        raise MalformedMessage("not a JSON object: the line must be enclosed in {}")
    return Members(value)


class _NotJSON(ValueError):
    """What the decoder lets pass, or Python has its own words for."""


def _refuse_constant(name: str) -> NoReturn:
    raise _NotJSON(f"{name} is not JSON")


def _unique_members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _NotJSON("a member occurs twice")
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_members, parse_constant=_refuse_constant)
