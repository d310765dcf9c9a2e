# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
r"""Load files of dbench: one operation a line, with what it is to come to.

    NTCreateX "\clients\client1\letter.doc" 0x40 0x2 17 NT_STATUS_OK
    WriteX 17 0 4096 4096 NT_STATUS_OK

The operation; its arguments, paths in quotes with backslashes, numbers decimal or hexadecimal; and the status that it
ends with.  A time in front of the operation is passed over, and so are empty lines and those that begin with #.  The
path component `client1` stands for the client that replays it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DEFAULT = Path(__file__).with_name("office.load")
"""A small one of this project's own: three people at their documents, and a folder that they share."""

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
"""The operations and what their arguments are."""

_TIME = re.compile(r"[0-9]+\.?[0-9]*\s+")
_WORD = re.compile(r'"([^"]*)"|(\S+)')


class BadLoad(ValueError):
    """A load file is not one; the text says where."""


class Operation(NamedTuple):
    """One line: the operation, its arguments (paths with slashes, in lower case, relative), and whether it succeeds."""

    line: int
    name: str
    arguments: tuple[str | int, ...]
    succeeds: bool


def read(path: Path) -> list[Operation]:
    """Read a load file.  Raises OSError, and BadLoad for a line that is no operation."""
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
            raise BadLoad(f"{name}:{number}: {operation} has {len(kinds)} arguments and a status")
        try:
            arguments = tuple(
                _path(quoted, paths) if kind == PATH else int(bare, 0)
                for kind, (quoted, bare) in zip(kinds, words[1:-1], strict=True)
            )
        except ValueError as error:
            raise BadLoad(f"{name}:{number}: {error}") from None
        yield Operation(number, operation, arguments, words[-1][1] == OK)


def _path(text: str, known: dict[str, str]) -> str:
    """A path below the scratch directory, in lower case since the names of SMB have none."""
    if text not in known:
        parts = [part for part in text.lower().split("\\") if part]
        if not parts or any(part == ".." or "/" in part or "\0" in part for part in parts):
            raise ValueError(f"{text!r} is no path that may be used")
        known[text] = "/".join(parts)
    return known[text]
