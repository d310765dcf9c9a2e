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
Rule 7. `include = registry` stands for the [global] of Samba's registry, and `config backend = registry` replaces all
        that the files say by it, as in Samba.

The normaliser passes iniconfig a text with one line for each setting of [global], in hexadecimal, so that no character
is special to iniconfig.  Line n of that text belongs to the n-th recorded origin; this is how a setting gets its file
and line.  Shares belong to Samba.  They are read only to report msgd's parameters that were put there by mistake, and
the form that makes Samba refuse the whole file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from iniconfig import IniConfig

from msgd import _registry
from msgd.config.parameters import PREFIX, fold
from msgd.config.problems import Origin, Problem, Weight, shown
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
_GLOBAL_NAMES = frozenset(("global", "globals"))
_REGISTRY = "registry"
_REGISTRY_FILE = "registry.tdb"
_BACKENDS = ("file", _REGISTRY)


class Setting(NamedTuple):
    """One setting of [global]: name and value as they are written there."""

    name: str
    value: str
    origin: Origin


class Reading(NamedTuple):
    """The settings of [global] in the order in which they were read, and what is wrong with the form of the files.

    `problems` is what concerns [global], sections and includes.  `remarks` is what changes nothing for msgd: what
    Samba refuses or passes over in its shares, and what it reads in another way.  `overridden` are the settings that
    later ones of the same name replace; Samba refuses a file for those as well.
    """

    settings: tuple[Setting, ...]
    problems: tuple[Problem, ...]
    remarks: tuple[Problem, ...] = ()
    overridden: tuple[Setting, ...] = ()


def read(path: str) -> Reading:
    """Read a file and its includes.  Raises ConfigError if the file itself cannot be read."""
    normaliser = _Normaliser()
    try:
        normaliser.take_file(path)
    except (OSError, ValueError, MemoryError) as error:
        raise ConfigError(f"{path}: {_reason(error)}") from None
    normaliser.follow_config_backend(path)
    settings = tuple(_parse(path, normaliser.settings))
    return Reading(
        settings, tuple(normaliser.problems), tuple(normaliser.remarks), tuple(normaliser.overridden.values())
    )


class _Normaliser:
    """Goes through the files, and keeps the last setting of each name in [global]."""

    def __init__(self) -> None:
        self.settings: dict[str, Setting] = {}
        self.problems: list[Problem] = []
        self.remarks: list[Problem] = []
        self.overridden: dict[tuple[str, str], Setting] = {}
        """By name and value: a value that Samba refuses is reported once."""
        self._section = "global"
        self._shares: set[str] | None = set()
        """The shares so far, as sources of `copy`; None once the registry may have brought others."""
        self._open_files: list[str] = []
        self._bytes_left = MAX_BYTES

    def follow_config_backend(self, path: str) -> None:
        """Where the file says `config backend = registry`, take the registry's settings instead of the file's."""
        setting = self.settings.get("configbackend")
        if setting is None or setting.value.lower() != _REGISTRY:
            return
        others = len(self.settings) - 1
        self.settings.clear()  # also `state directory`: Samba looks in its default
        if others:
            text = f"config backend = {setting.value}: the other settings of {path} do not count"
            self._remark(setting.origin, text)
        self._take_registry(f"config backend = {setting.value}", setting.origin)

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
            # Samba passes over a line without =, and refuses a file with a value that has no name.
            weight = Weight.REFUSED if equals else Weight.PASSED_OVER
            self._note(origin, f"{shown(line)}: neither a [section] nor name = value", weight)
        elif fold(name) == "include":
            self._include(value, origin)
        elif self._section in _GLOBAL_NAMES:
            self._set(name, value, origin)
        elif fold(name).startswith(PREFIX):
            self._complain(origin, f"{shown(name)}: has no effect in a share; it belongs in [global]", Weight.OWN)
        elif fold(name) == "copy":
            self._check_copy(value, origin)

    def _set(self, name: str, value: str, origin: Origin) -> None:
        folded = fold(name)
        if before := self.settings.pop(folded, None):  # so that the order is that of the last settings
            self.overridden[folded, before.value] = before
        self.settings[folded] = Setting(name, value, origin)
        if folded == "configbackend" and value.lower() not in _BACKENDS:
            self._complain(origin, f"config backend = {shown(value)}: not file or registry", Weight.REFUSED)
        if folded == "copy":
            self._complain(origin, f"copy = {shown(value)}: Samba refuses it in [global]", Weight.REFUSED)

    def _take_section(self, line: str, origin: Origin) -> None:
        name, bracket, _ = line[1:].partition("]")
        if not bracket:
            self._complain(origin, f"{shown(line)}: the ] after the section's name is missing", Weight.REFUSED)
        elif not name:
            self._remark(origin, "[]: a section must have a name", Weight.REFUSED)
        self._section = fold(name)
        if self._shares is not None and self._section not in _GLOBAL_NAMES:
            self._shares.add(self._section)

    def _check_copy(self, value: str, origin: Origin) -> None:
        if self._shares is not None and fold(value) not in self._shares - {self._section}:
            text = f"copy = {shown(value)}: no share of this name comes before [{shown(self._section)}]"
            self._remark(origin, text, Weight.REFUSED)

    def _include(self, value: str, origin: Origin) -> None:
        names = server_names(self._netbios_name())
        if value.lower() == _REGISTRY:
            if self._section in _GLOBAL_NAMES:
                self._take_registry(f"include = {value}", origin)
            else:
                self._remark(origin, f"include = {value}: Samba refuses it in a share", Weight.REFUSED)
            return
        if not value or is_per_client(value, names):
            return
        try:
            self._include_file(f"include = {shown(value)}", substitute(value, names), origin)
        except (OSError, ValueError, MemoryError) as error:
            self._complain(origin, f"include = {shown(value)}: {_reason(error)}")

    def _include_file(self, what: str, name: str, origin: Origin) -> None:
        """Read an included file.  Raises OSError, ValueError, MemoryError."""
        path = os.path.join(os.path.dirname(origin.path), name)
        chain = [*self._open_files, path]
        if os.path.realpath(path) in map(os.path.realpath, self._open_files):
            self._complain(origin, f"{what}: includes itself: {' -> '.join(chain)}", Weight.REFUSED)
        elif len(chain) > MAX_DEPTH:
            self._complain(origin, f"{what}: more than {MAX_DEPTH} files include each other", Weight.REFUSED)
        else:
            if not os.path.isabs(name):
                where = "msgd takes it from this file's directory, and Samba from its programs' working directories"
                self._remark(origin, f"{what}: not an absolute path; {where}")
            self.take_file(path)

    def _take_registry(self, what: str, origin: Origin) -> None:
        """Take the settings of Samba's registry, as if they stood here."""
        from msgd.config.registry import read_registry  # slow to import, and rarely needed

        path = _registry_path(self.settings)
        self._shares = None
        try:
            found = read_registry(path)
        except FileNotFoundError:
            self._remark(origin, f"{what}: there is no {path}; an empty registry is assumed")
            return
        except (OSError, ValueError) as error:
            self._complain(origin, f"{what}: {path}: {_reason(error)}", Weight.OWN)
            return
        there = Origin(path, 0)
        for name, value in found:
            if fold(name) != "include":
                self._set(name, value, there)
            elif value.lower() != _REGISTRY:
                self._include(value, there)

    def _note(self, origin: Origin, text: str, weight: Weight) -> None:
        """Note what msgd reads if it stands in [global], and what only Samba reads if it stands in a share."""
        if self._section in _GLOBAL_NAMES:
            self._complain(origin, text, weight)
        else:
            self._remark(origin, text, weight)

    def _complain(self, origin: Origin, text: str, weight: Weight = Weight.PASSED_OVER) -> None:
        _add(self.problems, Problem(origin, text, weight))

    def _remark(self, origin: Origin, text: str, weight: Weight = Weight.PASSED_OVER) -> None:
        _add(self.remarks, Problem(origin, text, weight))

    def _netbios_name(self) -> str:
        setting = self.settings.get("netbiosname")
        return setting.value if setting else ""


def _add(problems: list[Problem], problem: Problem) -> None:
    """Add a problem.  After MAX_PROBLEMS of them one line stands for all others, and has the weight of the heaviest."""
    if len(problems) < MAX_PROBLEMS:
        problems.append(problem)
        return
    last = problems.pop() if len(problems) > MAX_PROBLEMS else problem
    text = "and there are more problems; is this a smb.conf?"
    problems.append(Problem(last.origin, text, max(last.weight, problem.weight)))


def _registry_path(settings: dict[str, Setting]) -> str:
    """Return where registry.tdb is: in the state directory that the file has set so far, or in Samba's default.

    msgd is not told Samba's default.  Debian's is the parent of the private directory, upstream's the lock directory.
    """
    if "statedirectory" in settings:
        return os.path.join("/", settings["statedirectory"].value, _REGISTRY_FILE)
    usual = [
        os.path.join(directory, _REGISTRY_FILE)
        for directory in (os.path.dirname(_registry.PRIVATEDIR), _registry.LOCKDIR)
    ]
    return next(filter(os.path.lexists, usual), usual[0])


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
    return text.encode(errors="surrogateescape").hex()


def _decode(text: str) -> str:
    return bytes.fromhex(text).decode(errors="surrogateescape")


def _reason(error: OSError | ValueError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "no memory left"
    return str(getattr(error, "strerror", None) or error)
