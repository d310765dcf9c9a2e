# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Find the value of a setting: strictly where the line is msgd's own, and as Samba does where it is Samba's.

The kinds (kinds.py) say what a good value is.  Here is what becomes of a bad one in a parameter that msgd only borrows
from Samba (`log level`, `lock directory`, `max connections` ...):

Rule 1. msgd takes the value that Samba takes.  Where there is none, the default is in force.
Rule 2. There is always a complaint that says what msgd uses instead.
Rule 3. Samba refuses a file whose boolean is neither yes nor no, so the complaint has the weight REFUSED.

What Samba takes was tried with testparm, smbd, nmbd, smbcontrol and pdbedit of Samba 4.17:

- Quotes around a value are stripped from `log file`, and belong to the name in the three directories.
- Relative paths are relative to the working directory, which is / for a daemon.  An empty directory is / as well.
- The directories are taken as they are written, %h included.  msgd replaces it as Samba 3.0 did, and says so.  It
  says nothing about %%, in which form it writes a % itself.
- Numbers are read as C's strtol() reads them, up to the first character that does not fit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from msgd.config.kinds import AbsolutePath, Boolean, Level, LogLevel, Number
from msgd.config.parameters import PREFIX, Parameter, fold
from msgd.config.problems import Weight, shown
from msgd.config.substitution import substitute

_LOG_FILE = "log file"
_NUMBER = re.compile(r"\s*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")
_WORDS = re.compile(r"[\s,]+")
_HIGHEST = 10


class Found(NamedTuple):
    """The value of a setting, if there is one, and what is wrong with the text, if anything is."""

    value: Any = None
    has_value: bool = False
    complaint: str = ""
    weight: Weight = Weight.PASSED_OVER


def find_value(parameter: Parameter, written: str, text: str, names: Mapping[str, str]) -> Found:
    """Return the value of the parameter for a text of smb.conf.

    `written` is the parameter's name as it stands there, and `names` has the values of the substitutions in paths.
    """
    if fold(written).startswith(PREFIX) or parameter.name == "messaging type":
        return _own(parameter, text, names)
    kind = parameter.kind
    if isinstance(kind, AbsolutePath):
        return _path(parameter, kind, text, names)
    if isinstance(kind, Level):
        return _level(text)
    if isinstance(kind, Number):
        return _number(kind, text)
    assert isinstance(kind, Boolean)
    try:
        return Found(kind.parse(text), has_value=True)
    except ValueError as error:
        return Found(complaint=str(error), weight=Weight.REFUSED)


def _own(parameter: Parameter, text: str, names: Mapping[str, str]) -> Found:
    try:
        replaced = substitute(text, names) if parameter.kind.is_path else text
        return Found(parameter.kind.parse(replaced), has_value=True)
    except ValueError as error:
        return Found(complaint=str(error), weight=Weight.OWN)


def _path(parameter: Parameter, kind: AbsolutePath, text: str, names: Mapping[str, str]) -> Found:
    complaints: list[str] = []
    value = text
    is_log_file = parameter.name == _LOG_FILE
    if is_log_file and '"' in value and '"' not in value.strip('"'):
        value = value.strip('"')
        complaints.append("the quotes are stripped, as Samba does")
    try:
        value = substitute(value, names)
    except ValueError as error:
        complaints.append(f"{error}, so it is taken as it stands")
    if not is_log_file and value != text.replace("%%", "%") and not complaints:
        complaints.append("msgd replaces the % in this path, and Samba takes it as it stands; write the path out")
    if not value.startswith("/") and not (kind.optional and not value):
        value = os.path.join("/", value)
        complaints.append(f"not an absolute path; msgd uses {shown(value)}, as a daemon of Samba does")
    try:
        return Found(kind.parse(value), has_value=True, complaint="; ".join(complaints))
    except ValueError as error:
        return Found(complaint=f"{error}; the default is in force")


def _level(text: str) -> Found:
    """Samba takes any number and ignores words that it does not understand."""
    try:
        return Found(LogLevel(text), has_value=True)
    except ValueError as error:
        kept = [_bounded(word) for word in _WORDS.split(text) if _is_level(word)]
        general = [word for word in kept if word.isdigit()][:1]
        used = LogLevel(" ".join((general or ["0"]) + [word for word in kept if not word.isdigit()]))
        return Found(used, has_value=True, complaint=f"{error}; msgd uses {used.text}")


def _is_level(word: str) -> bool:
    try:
        LogLevel(_bounded(word))
    except ValueError:
        return False
    return True


def _bounded(word: str) -> str:
    """Return the word `7` or `class:7` with a level from 0 to 10; any other word as it is."""
    name, colon, level = word.partition("@")[0].rpartition(":")
    if not re.fullmatch("[+-]?[0-9]{1,20}", level):
        return word
    return f"{name}{colon}{max(0, min(_HIGHEST, int(level)))}"


def _number(kind: Number, text: str) -> Found:
    """Samba reads as much as is a number.  It takes 0 and less as no limit."""
    value = min(kind.maximum, max(kind.minimum, _strtol(text)))
    is_good = text == kind.format(value)
    complaint = "" if is_good else f"not {kind.description}; msgd uses {kind.format(value)}, as Samba does"
    return Found(value, has_value=True, complaint=complaint)


def _strtol(text: str) -> int:
    """Return what C's strtol() finds at the beginning of the text, in a signed number of 32 bits."""
    match = _NUMBER.match(text)
    if match is None:
        return 0
    sign, hexadecimal, octal, decimal = match.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    value = -value if sign == "-" else value
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)
