# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgstatus: show the processes in the rendezvous directory, as smbstatus shows the clients of a server.

It only reads the directory and never joins it.  So any user who may read the directory can run it, it does not list
itself, and no process notices it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from msgd.config import Config
from msgd.errors import BackendUnavailable
from msgd.programs import cli
from msgd.tools.msgstatus.status import Row, Status, read_status
from msgd.wire.message_types import MessageClass, class_names

if TYPE_CHECKING:
    from rich.console import RenderableType

PROGRAM = "msgstatus"

_INTERVAL = 1.0
"""Seconds between two refreshes of --watch."""

_UNKNOWN = "-"
_ALL_CLASSES = tuple(class_names(MessageClass.ALL).split())

_COLUMNS = ("PID", "UNIQUE ID", "UID", "COMMAND", "NAMES", "LISTENS", "TYPE", "QUEUE", "SINCE", "STATE")
_NUMBERS = frozenset(("PID", "UNIQUE ID", "UID", "QUEUE"))
"""The columns that are right-aligned."""
_WRAPPED = {"UNIQUE ID": 10, "COMMAND": 8, "NAMES": 6, "LISTENS": 7, "SINCE": 10}
"""The columns that wrap on a narrow terminal, with their minimum widths."""

_USAGE = "msgstatus [-s FILE] [--json | --watch [SECONDS]] [-V]"

_DESCRIPTION = "Show the processes that use messaging, and what dead ones have left behind."

_EPILOG = """\
columns:
  LISTENS        the classes of broadcasts that the process receives
  QUEUE          its backlog in messages; known only with messaging type tdb
  STATE          alive;
                 dead: its files stay until the next clean-up;
                 starting: it cannot receive messages yet
An unknown value is shown as -, and as null in --json.

examples:
  msgstatus               print the table once
  msgstatus --watch 5     redraw it every 5 seconds until Ctrl-C
  msgstatus --json | jq '.processes[] | select(.state == "dead") | .pid'
                          print the pids of dead processes

Exit status: 0, 1 if the directory cannot be read, 2 for wrong usage.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run msgstatus with these arguments (None: the process's own) and return its exit status."""
    return cli.run(PROGRAM, lambda: _run(make_parser().parse_args(argv)))


def make_parser() -> cli.Parser:
    """The parser of msgstatus's arguments.  The manual page is generated from it."""
    parser = cli.Parser(PROGRAM, _DESCRIPTION, _EPILOG, _USAGE)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print one JSON object instead")
    how.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=cli.seconds,
        const=_INTERVAL,
        help=f"refresh the table every SECONDS until Ctrl-C (default: {_INTERVAL:g})",
    )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    cli.log_errors_only(PROGRAM)
    config = Config.load(arguments.configfile)
    if arguments.watch is not None:
        return _watch(config, arguments.watch)
    status = read_status(config)
    if arguments.json:
        print(json.dumps(_as_json(status)))
        return 0
    if not (sys.stdout.isatty() and status.rows and _print_rich(status)):
        print(_plain(status))
    for note in status.notes:
        sys.stderr.write(f"{PROGRAM}: {note}\n")
    return 0


def _as_json(status: Status) -> dict[str, object]:
    return {
        "directory": status.directory,
        "processes": [{"server_id": row.server_id} | asdict(row) for row in status.rows],
        "notes": status.notes,
    }


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


def _nobody(status: Status) -> str:
    return f"nobody is in {status.directory}"


def _plain(status: Status) -> str:
    """The table as plain text, each column as wide as its widest cell."""
    if not status.rows:
        return _nobody(status)
    lines = [_COLUMNS, *map(_cells, status.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
            for column, cell, width in zip(_COLUMNS, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def _rich(status: Status) -> RenderableType:
    """The table for a terminal.  ImportError if rich is not installed."""
    from rich.table import Table
    from rich.text import Text

    if not status.rows:
        return Text(_nobody(status))
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


def _print_rich(status: Status) -> bool:
    """Print the table with rich.  Return False if rich is not installed."""
    try:
        from rich.console import Console

        Console().print(_rich(status))
    except ImportError:
        return False
    return True


def _watch(config: Config, interval: float) -> int:
    """Redraw the table every `interval` seconds.  A timer is needed because a death does not change the directory."""
    try:
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        raise BackendUnavailable("--watch needs Python's rich: install python3-rich, or pip install rich") from None
    if not sys.stdout.isatty():
        raise BackendUnavailable("--watch needs a terminal; use --json in a loop instead")
    with Live(screen=True, auto_refresh=False) as live:
        try:
            while True:
                status = read_status(config)
                live.update(Group(_rich(status), *map(Text, status.notes)), refresh=True)
                time.sleep(interval)
        except KeyboardInterrupt:
            return 0
