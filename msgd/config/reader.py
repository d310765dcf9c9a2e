# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Read a smb.conf: find what its [global] section sets, with the file and line of each setting.

iniconfig parses sections, names and values.  A normaliser takes care beforehand of what smb.conf allows and iniconfig
does not:

Rule 1. A line that ends in a backslash continues on the next.  A run of blanks counts as its first blank, as in Samba.
Rule 2. Lines may be indented.  `;` and `#` begin a comment only as the first character of a line.
Rule 3. Names ignore case and blanks.  The last setting of a name counts.  Sections may be repeated.
Rule 4. What stands before the first section is in [global].
Rule 5. `include = file` stands for the lines of that file.  A section that begins there continues afterwards.
Rule 6. Names and values may contain any character.

The normaliser passes iniconfig a text with one line for each setting of [global], percent-encoded so that no character
is special to iniconfig.  Line n of that text belongs to the n-th recorded origin; this is how a setting gets its file
and line.  Shares belong to Samba.  They are read only to report msgd's parameters that were put there by mistake.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote, unquote

from iniconfig import IniConfig

from msgd.config.parameters import PREFIX, fold
from msgd.config.substitution import is_per_client, server_names, substitute
from msgd.errors import ConfigError

MAX_BYTES = 16 << 20
"""How much is read of a smb.conf with all its includes. Real ones have a thousandth of that."""

MAX_DEPTH = 100
"""How deeply includes may be nested, as in Samba."""

MAX_PROBLEMS = 100
"""How many problems of form are reported. A file that has more is not a smb.conf."""

_BLANKS = re.compile(r"([ \t\r\f\v])[ \t\r\f\v]+")
_BLANK = " \t\r\f\v"
_MOST_SHOWN = 200
_GLOBAL_NAMES = frozenset(("global", "globals"))


class Origin(NamedTuple):
    """Where something is written: a file, by the name that was passed, and a line, counted from 1."""

    path: str
    line: int

    def __str__(self) -> str:
        """Return `FILE:LINE`, as compilers do."""
        return f"{self.path}:{self.line}"


class Setting(NamedTuple):
    """One setting of [global]: name and value as they are written there."""

    name: str
    value: str
    origin: Origin


class Problem(NamedTuple):
    """What is wrong, and where.  Problems are sorted by file and line."""

    origin: Origin
    text: str

    def __str__(self) -> str:
        """Return `FILE:LINE: text`, the line to show."""
        return f"{self.origin}: {self.text}"


class Reading(NamedTuple):
    """The settings of [global] in the order in which they were read, and the problems in the form of the files."""

    settings: tuple[Setting, ...]
    problems: tuple[Problem, ...]


def read(path: str) -> Reading:
    """Read a file and its includes.  Raises ConfigError if the file itself cannot be read."""
    normaliser = _Normaliser()
    try:
        normaliser.take_file(path)
    except (OSError, ValueError, MemoryError) as error:
        raise ConfigError(f"{path}: {_reason(error)}") from None
    return Reading(tuple(_parse(path, normaliser.settings)), tuple(normaliser.problems))


def shown(text: str) -> str:
    """Return text from a file in a form that fits one line and holds nothing that a terminal would interpret."""
    short = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
    return short if short.isprintable() else ascii(short)[1:-1]


class _Normaliser:
    """Goes through the files, and keeps the last setting of each name in [global]."""

    def __init__(self) -> None:
        self.settings: dict[str, Setting] = {}
        self.problems: list[Problem] = []
        self._section = "global"
        self._open_files: list[str] = []
        self._bytes_left = MAX_BYTES

    def take_file(self, path: str) -> None:
        """Read the lines of a file.  Raises OSError or ValueError if it cannot be read."""
        text = self._read_text(path)
        self._open_files.append(path)
        for number, line in _logical_lines(text):
            self._take_line(line, Origin(path, number))
        self._open_files.pop()

    def _read_text(self, path: str) -> str:
        with open(path, "rb") as file:
            content = file.read(self._bytes_left + 1)
        self._bytes_left -= len(content)
        if self._bytes_left < 0:
            self._bytes_left = 0
            raise ValueError(f"more than {MAX_BYTES >> 20} MiB: too large for a smb.conf")
        if b"\0" in content:
            raise ValueError("contains NUL bytes, so it is not a smb.conf")
        return content.decode("utf-8-sig", "surrogateescape")

    def _take_line(self, line: str, origin: Origin) -> None:
        if line.startswith("["):
            self._take_section(line, origin)
            return
        name, equals, value = (part.strip(_BLANK) for part in line.partition("="))
        if not equals or not name:
            if self._section in _GLOBAL_NAMES:
                self._complain(origin, f"{shown(line)}: neither a [section] nor name = value")
        elif fold(name) == "include":
            self._include(value, origin)
        elif self._section in _GLOBAL_NAMES:
            self.settings.pop(fold(name), None)  # so that the order is that of the last settings
            self.settings[fold(name)] = Setting(name, value, origin)
        elif fold(name).startswith(PREFIX):
            self._complain(origin, f"{shown(name)}: has no effect in a share; it belongs in [global]")

    def _take_section(self, line: str, origin: Origin) -> None:
        name, bracket, _ = line[1:].partition("]")
        if not bracket:
            self._complain(origin, f"{shown(line)}: the ] after the section's name is missing")
        self._section = fold(name)

    def _include(self, value: str, origin: Origin) -> None:
        names = server_names(self._netbios_name())
        if not value or value.lower() == "registry" or is_per_client(value, names):
            return
        try:
            path = os.path.join(os.path.dirname(origin.path), substitute(value, names))
            chain = [*self._open_files, path]
            if os.path.realpath(path) in map(os.path.realpath, self._open_files):
                raise ValueError(f"includes itself: {' -> '.join(chain)}")
            if len(chain) > MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} files include each other")
            self.take_file(path)
        except (OSError, ValueError, MemoryError) as error:
            self._complain(origin, f"include = {shown(value)}: {_reason(error)}")

    def _complain(self, origin: Origin, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(origin, text))
        elif len(self.problems) == MAX_PROBLEMS:
            self.problems.append(Problem(origin, "and there are more problems; is this a smb.conf?"))

    def _netbios_name(self) -> str:
        setting = self.settings.get("netbiosname")
        return setting.value if setting else ""


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line that is not blank and not a comment, joined with its continuations, and its first line number."""
    pending = ""
    first = 0
    for number, physical in enumerate(text.split("\n"), 1):
        line = physical.rstrip(_BLANK)
        if not pending:
            if line.lstrip(_BLANK).startswith(("#", ";")):
                continue
            first = number
        if line.endswith("\\"):
            pending += line[:-1] or " "
            continue
        if joined := _BLANKS.sub(r"\1", pending + line).strip(_BLANK):
            yield first, joined
        pending = ""
    if pending:  # a backslash at the very end of the file is an ordinary character
        yield first, _BLANKS.sub(r"\1", f"{pending}\\").strip(_BLANK)


def _parse(path: str, settings: dict[str, Setting]) -> Iterator[Setting]:
    """Have iniconfig parse the normalised text of the settings, and yield the settings that it finds."""
    lines = ["[global]", *(f"{_encode(s.name)} = {_encode(s.value)}" for s in settings.values())]
    origins = dict(enumerate((s.origin for s in settings.values()), start=2))
    section = IniConfig(path, data="\n".join(lines))["global"]
    for name, value in section.items():
        yield Setting(_decode(name), _decode(value), origins[section.lineof(name) or 0])


def _encode(text: str) -> str:
    return quote(text, safe=" /", errors="surrogateescape")


def _decode(text: str) -> str:
    return unquote(text, errors="surrogateescape")


def _reason(error: OSError | ValueError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "no memory left"
    return str(getattr(error, "strerror", None) or error)
