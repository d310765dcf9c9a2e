# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Show the status as a table: plain text, or coloured with rich on a terminal.

Without --wide the table fits 80 columns: long commands and names are cut in plain text, and wrapped on a terminal.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from msgd.tools.msgstatus.status import Row, Status
from msgd.wire.message_types import MessageClass, class_names

if TYPE_CHECKING:
    from rich.console import RenderableType

_UNKNOWN = "-"
_CUT = "+"
_ALL_CLASSES = tuple(class_names(MessageClass.ALL).split())
_DAY = "%Y-%m-%d"


class _Column(NamedTuple):
    """A column of the table: `width` is that of the narrow table, in which a column without one is missing."""

    title: str
    width: int = 0
    is_number: bool = False
    wraps_from: int | None = None
    """The least width to which a terminal may wrap it."""
    clustered: int | None = None
    """The width in a cluster, if that is another one."""


_NODE = _Column("NODE", 4, is_number=True)
"""Shown in a cluster only."""

_COLUMNS = (
    _NODE,
    _Column("PID", 7, is_number=True),
    _Column("UNIQUE ID", is_number=True, wraps_from=10),
    _Column("UID", is_number=True),
    _Column("KIND", 6),
    _Column("COMMAND", 13, wraps_from=8, clustered=9),
    _Column("NAMES", 11, wraps_from=6, clustered=9),
    _Column("LISTENS", wraps_from=7),
    _Column("TYPE"),
    _Column("QUEUE", 6, is_number=True),
    _Column("HUNG", 4, is_number=True),
    _Column("WAITS IN"),
    _Column("SINCE", 10, wraps_from=10),
    _Column("STATE", 9),
)
"""The widths and the two blanks between the columns of the narrow table make 80."""

_NODE_COLUMNS = (_NODE, _Column("ADDRESS"), _Column("STATE"))


class _Table(NamedTuple):
    """What is shown: the columns, the cells of each line, and how each line looks on a terminal."""

    columns: list[_Column]
    lines: list[list[str]]
    styles: list[str | None]


def _process_table(status: Status, is_wide: bool) -> _Table:
    is_clustered = status.nodes is not None
    shown = [
        column if column.clustered is None or not is_clustered else column._replace(width=column.clustered)
        for column in _COLUMNS
        if (is_wide or column.width) and (is_clustered or column is not _NODE)
    ]
    titles = {column.title for column in shown}
    lines = []
    for row in status.rows:
        cells = zip(_cells(row, is_wide), _COLUMNS, strict=True)
        lines.append([cell for cell, column in cells if column.title in titles])
    styles = ["red" if row.hung is not None else None if row.state == "alive" else "dim" for row in status.rows]
    return _Table(shown, lines, styles)


def _node_table(status: Status) -> _Table:
    nodes = status.nodes or ()
    lines = [
        [str(node.number), node.address, node.state + (" (this node)" if node.number == status.own_node else "")]
        for node in nodes
    ]
    return _Table(list(_NODE_COLUMNS), lines, [None if node.state == "ok" else "red" for node in nodes])


def _cells(row: Row, is_wide: bool) -> list[str]:
    """The row as text, with the control characters that a terminal would obey replaced."""
    cells = (
        row.node,
        row.pid,
        row.unique_id,
        row.uid,
        row.kind,
        row.command,
        None if row.names is None else " ".join(row.names),
        "all" if row.classes == _ALL_CLASSES else " ".join(row.classes),
        row.type,
        row.queue,
        "" if row.hung is None else f"{row.hung:.0f}s",
        row.waits_in or "",
        _time(row.since, is_wide),
        row.state,
    )
    return [_UNKNOWN if cell is None else _printable(str(cell)) for cell in cells]


def _time(since: int, is_wide: bool) -> str:
    """The date and the time; in the narrow table the time of today, or else the date."""
    when = time.localtime(since)
    if is_wide:
        return time.strftime(f"{_DAY} %H:%M:%S", when)
    return time.strftime("%H:%M:%S" if when[:3] == time.localtime()[:3] else _DAY, when)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _empty(status: Status) -> str:
    """What is shown instead of a table without rows."""
    return f"no processes in {status.directory}"


def plain_table(status: Status, *, is_wide: bool = False) -> str:
    """The table as plain text, each column as wide as its widest cell; in a cluster, the nodes below it."""
    processes = _plain(_process_table(status, is_wide), is_wide) if status.rows else _empty(status)
    return f"{processes}\n\n{_plain(_node_table(status), is_wide=True)}" if status.nodes else processes


def _plain(table: _Table, is_wide: bool) -> str:
    lines = [[column.title for column in table.columns]]
    for line in table.lines:
        cells = zip(line, table.columns, strict=True)
        lines.append([cell if is_wide else _cut(cell, column.width) for cell, column in cells])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for column, cell, width in zip(table.columns, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - len(_CUT)]}{_CUT}"


def rich_table(status: Status, *, is_wide: bool = False) -> RenderableType:
    """The table for a terminal, in a cluster with the nodes below it.  ImportError if rich is not installed."""
    from rich.console import Group
    from rich.text import Text

    processes = _rich(_process_table(status, is_wide)) if status.rows else Text(_empty(status))
    return Group(processes, Text(), _rich(_node_table(status))) if status.nodes else processes


def _rich(table: _Table) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in table.columns:
        shown.add_column(
            column.title,
            justify="right" if column.is_number else "left",
            min_width=column.wraps_from,
            no_wrap=column.wraps_from is None,
            overflow="fold",
        )
    for line, style in zip(table.lines, table.styles, strict=True):
        shown.add_row(*map(Text, line), style=style)
    return shown


def print_rich(status: Status, *, is_wide: bool = False) -> bool:
    """Print the table with rich.  Return False if rich is not installed."""
    try:
        from rich.console import Console

        Console().print(rich_table(status, is_wide=is_wide))
    except ImportError:
        return False
    return True
