# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Show the status as a table: plain text, or coloured with rich on a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgd.tools.msgstatus.status import Row, Status
from msgd.wire.message_types import MessageClass, class_names

if TYPE_CHECKING:
    from rich.console import RenderableType

_UNKNOWN = "-"
_ALL_CLASSES = tuple(class_names(MessageClass.ALL).split())

_COLUMNS = ("PID", "UNIQUE ID", "UID", "COMMAND", "NAMES", "LISTENS", "TYPE", "QUEUE", "SINCE", "STATE")
_NUMBERS = frozenset(("PID", "UNIQUE ID", "UID", "QUEUE"))
"""The columns that are right-aligned."""
_WRAPPED = {"UNIQUE ID": 10, "COMMAND": 8, "NAMES": 6, "LISTENS": 7, "SINCE": 10}
"""The columns that wrap on a narrow terminal, with their minimum widths."""


def _cells(row: Row) -> tuple[str, ...]:
    """The row as text, with the control characters that a terminal would obey replaced."""
    cells = (
        row.pid,
        row.unique_id,
        row.uid,
        row.command,
        None if row.names is None else " ".join(row.names),
        "all" if row.classes == _ALL_CLASSES else " ".join(row.classes),
        row.type,
        row.queue,
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.since)),
        row.state,
    )
    return tuple(_UNKNOWN if cell is None else _printable(str(cell)) for cell in cells)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _empty(status: Status) -> str:
    """What is shown instead of a table without rows."""
    return f"no processes in {status.directory}"


def plain_table(status: Status) -> str:
    """The table as plain text, each column as wide as its widest cell."""
    if not status.rows:
        return _empty(status)
    lines = [_COLUMNS, *map(_cells, status.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
            for column, cell, width in zip(_COLUMNS, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def rich_table(status: Status) -> RenderableType:
    """The table for a terminal.  ImportError if rich is not installed."""
    from rich.table import Table
    from rich.text import Text

    if not status.rows:
        return Text(_empty(status))
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in _COLUMNS:
        table.add_column(
            column,
            justify="right" if column in _NUMBERS else "left",
            min_width=_WRAPPED.get(column),
            no_wrap=column not in _WRAPPED,
            overflow="fold",
        )
    for row in status.rows:
        table.add_row(*map(Text, _cells(row)), style=None if row.state == "alive" else "dim")
    return table


def print_rich(status: Status) -> bool:
    """Print the table with rich.  Return False if rich is not installed."""
    try:
        from rich.console import Console

        Console().print(rich_table(status))
    except ImportError:
        return False
    return True
