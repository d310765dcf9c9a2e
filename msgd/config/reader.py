"""Read a smb.conf: what its [global] section sets, each with the file and line that set it.

iniconfig parses sections, names and values.  What smb.conf allows and iniconfig does not is taken care of before:

    - lines that end in a backslash go on in the next line, runs of blanks count as one, as Samba counts them;
    - lines may be indented; `;` and `#` begin a comment only as the first character of a line;
    - names ignore case and blanks; of repeated names the last wins; sections may be repeated;
    - what comes before any section is in [global];
    - `include = file` puts that file's lines in its place (a section begun in it goes on after it, as in Samba);
    - names and values may hold any character.

The result is one text with a line for each setting of [global], percent-encoded so that nothing in it is special to
iniconfig.  The n-th line of that text and the n-th origin noted belong together: this is how each setting knows its
file and line.  Shares are Samba's alone and are only looked at for misplaced options of msgd.
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
"""The most that is read of a smb.conf with all it includes; real ones are a thousandth of that."""

MAX_DEPTH = 100
"""How deep includes may be nested, as in Samba."""

MAX_PROBLEMS = 100
"""How many problems of form are told of: a file with more is something else than a smb.conf."""

_BLANKS = re.compile(r"([ \t\r\f\v])[ \t\r\f\v]+")
_BLANK = " \t\r\f\v"
_MOST_SHOWN = 200
_GLOBAL_NAMES = frozenset(("global", "globals"))


class Origin(NamedTuple):
    """Where something is written: a file as named to us, and its line, from 1."""

    path: str
    line: int

    def __str__(self) -> str:
        """Return `FILE:LINE`, as compilers write it."""
        return f"{self.path}:{self.line}"


class Setting(NamedTuple):
    """One parameter that [global] sets: name and value as written there."""

    name: str
    value: str
    origin: Origin


class Problem(NamedTuple):
    """What is wrong, and where.  Problems sort by file and line."""

    origin: Origin
    text: str

    def __str__(self) -> str:
        """Return the line to show: `FILE:LINE: text`."""
        return f"{self.origin}: {self.text}"


class Reading(NamedTuple):
    """What was read: the settings of [global] in the order of the files, and what is wrong with the files' form."""

    settings: tuple[Setting, ...]
    problems: tuple[Problem, ...]


def read(path: str) -> Reading:
    """Read the file and all it includes; ConfigError if the file itself cannot be read at all."""
    normaliser = _Normaliser()
    try:
        normaliser.take_file(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {_reason(error)}") from None
    return Reading(tuple(_parse(path, normaliser.settings)), tuple(normaliser.problems))


def shown(text: str) -> str:
    """Return text from a file fit to be shown in one line: not too long, nothing a terminal would obey."""
    short = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
    return short if short.isprintable() else ascii(short)[1:-1]


class _Normaliser:
    """Goes through the files and keeps the last setting of each name in [global]."""

    def __init__(self) -> None:
        self.settings: dict[str, Setting] = {}
        self.problems: list[Problem] = []
        self._section = "global"
        self._open_files: list[str] = []
        self._bytes_left = MAX_BYTES

    def take_file(self, path: str) -> None:
        """Take a file's lines in; OSError or ValueError if it cannot be read."""
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
            raise ValueError(f"more than {MAX_BYTES >> 20} MiB, which no smb.conf has")
        if b"\0" in content:
            raise ValueError("holds NUL bytes and so is no smb.conf")
        return content.decode("utf-8-sig", "surrogateescape")

    def _take_line(self, line: str, origin: Origin) -> None:
        if line.startswith("["):
            self._take_section(line, origin)
            return
        name, equals, value = (part.strip(_BLANK) for part in line.partition("="))
        if not equals or not name:
            if self._section in _GLOBAL_NAMES:
                self._complain(origin, f"{shown(line)}: neither [section] nor name = value")
        elif fold(name) == "include":
            self._include(value, origin)
        elif self._section in _GLOBAL_NAMES:
            self.settings.pop(fold(name), None)  # so that the order is that of the last ones
            self.settings[fold(name)] = Setting(name, value, origin)
        elif fold(name).startswith(PREFIX):
            self._complain(origin, f"{shown(name)}: this belongs in [global]; in a share it has no effect")

    def _take_section(self, line: str, origin: Origin) -> None:
        name, bracket, _ = line[1:].partition("]")
        if not bracket:
            self._complain(origin, f"{shown(line)}: a section's name without its ]")
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
        except (OSError, ValueError) as error:
            self._complain(origin, f"include = {shown(value)}: {_reason(error)}")

    def _complain(self, origin: Origin, text: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(origin, text))
        elif len(self.problems) == MAX_PROBLEMS:
            self.problems.append(Problem(origin, "and more of them; is this a smb.conf?"))

    def _netbios_name(self) -> str:
        setting = self.settings.get("netbiosname")
        return setting.value if setting else ""


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield what is neither blank nor comment: the number of the first line of the file, and the joined lines."""
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
    if pending:  # the file ends in a backslash: there it is one
        yield first, _BLANKS.sub(r"\1", f"{pending}\\").strip(_BLANK)


def _parse(path: str, settings: dict[str, Setting]) -> Iterator[Setting]:
    """Have iniconfig parse the normalised text of the settings, and yield what it finds."""
    lines = ["[global]", *(f"{_encode(s.name)} = {_encode(s.value)}" for s in settings.values())]
    origins = dict(enumerate((s.origin for s in settings.values()), start=2))
    section = IniConfig(path, data="\n".join(lines))["global"]
    for name, value in section.items():
        yield Setting(_decode(name), _decode(value), origins[section.lineof(name) or 0])


def _encode(text: str) -> str:
    return quote(text, safe=" /", errors="surrogateescape")


def _decode(text: str) -> str:
    return unquote(text, errors="surrogateescape")


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)
