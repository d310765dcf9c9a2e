# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
r"""Read the load files of dbench: one operation per line, with its expected status.

    NTCreateX "\clients\client1\letter.doc" 0x40 0x2 17 NT_STATUS_OK
    WriteX 17 0 4096 4096 NT_STATUS_OK

A line has the operation, its arguments and its status.  Paths are quoted and have backslashes; numbers are decimal or
hexadecimal.  A time before the operation is ignored, as are empty lines and lines that begin with #.  The path
component `client1` stands for the client that replays the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DEFAULT = Path(__file__).with_name("office.load")
"""A small load of this project's own: three people edit documents and share a folder."""

OK = "NT_STATUS_OK"

PATH, NUMBER = "path", "number"

OPERATIONS: dict[str, tuple[str, ...]] = {
    "NTCreateX": (PATH, NUMBER, NUMBER, NUMBER),
    "Close": (NUMBER,),
    "ReadX": (NUMBER, NUMBER, NUMBER, NUMBER),
    "WriteX": (NUMBER, NUMBER, NUMBER, NUMBER),
    "LockX": (NUMBER, NUMBER, NUMBER),
    "UnlockX": (NUMBER, NUMBER, NUMBER),
    "Flush": (NUMBER,),
    "Rename": (PATH, PATH),
    "Unlink": (PATH, NUMBER),
    "Mkdir": (PATH,),
    "Rmdir": (PATH,),
    "Deltree": (PATH,),
    "FIND_FIRST": (PATH, NUMBER, NUMBER, NUMBER),
    "QUERY_PATH_INFORMATION": (PATH, NUMBER),
    "QUERY_FILE_INFORMATION": (NUMBER, NUMBER),
    "QUERY_FS_INFORMATION": (NUMBER,),
    "SET_FILE_INFORMATION": (NUMBER, NUMBER),
}
"""The operations, with the kinds of their arguments."""

_TIME = re.compile(r"[0-9]+\.?[0-9]*\s+")
_WORD = re.compile(r'"([^"]*)"|(\S+)')


class BadLoad(ValueError):
    """The file is not a load file; the text says in which line and why."""


class Operation(NamedTuple):
    """One line: the operation, its arguments, and whether it succeeds.

    Paths are relative and in lower case, with slashes.
    """

    line: int
    name: str
    arguments: tuple[str | int, ...]
    succeeds: bool


def read(path: Path) -> list[Operation]:
    """Read a load file.  Raises OSError, and BadLoad if a line is not an operation."""
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        operations = list(_parse(path.name, file))
    if not operations:
        raise BadLoad(f"{path.name} has no operations")
    return operations


def _parse(name: str, lines: Iterator[str]) -> Iterator[Operation]:
    paths: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        time = _TIME.match(text)
        words = _WORD.findall(text[time.end() :] if time else text)
        operation = words[0][1]
        kinds = OPERATIONS.get(operation)
        if kinds is None:
            raise BadLoad(f"{name}:{number}: unknown operation {(operation or text)[:40]!r}")
        if len(words) != len(kinds) + 2:
            raise BadLoad(f"{name}:{number}: {operation} takes {len(kinds)} arguments and a status")
        try:
            arguments = tuple(
                _path(quoted, paths) if kind == PATH else int(bare, 0)
                for kind, (quoted, bare) in zip(kinds, words[1:-1], strict=True)
            )
        except ValueError as error:
            raise BadLoad(f"{name}:{number}: {error}") from None
        yield Operation(number, operation, arguments, words[-1][1] == OK)


def _path(text: str, known: dict[str, str]) -> str:
    """Return the path relative to the scratch directory, in lower case because SMB names ignore case."""
    if text not in known:
        parts = [part for part in text.lower().split("\\") if part]
        if not parts or any(part == ".." or "/" in part or "\0" in part for part in parts):
            raise ValueError(f"{text!r} is not an allowed path")
        known[text] = "/".join(parts)
    return known[text]
