# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The subcommands that work on files written by --json: `msgbench compare` and `msgbench page`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from msgd.bench import compare, page, plot, record, tables
from msgd.bench.command import PROGRAM, CommandParser
from msgd.bench.options import seconds
from msgd.bench.results import Result
from msgd.programs import cli


def add_compare(commands: argparse._SubParsersAction[CommandParser]) -> None:
    """Add `msgbench compare`."""
    sub = commands.add_parser(
        "compare",
        help="the ratios between two files written by --json",
        description="Print the ratio of each median in NEW to its counterpart in OLD.\n",
        epilog="Exit status: 0, 1 if a figure is below --at-least, 2 for wrong usage.\n",
        arguments="[--at-least RATIO] OLD.json NEW.json",
    )
    sub.add_argument("old", type=Path, metavar="OLD.json")
    sub.add_argument("new", type=Path, metavar="NEW.json")
    sub.add_argument(
        "--at-least",
        type=seconds,
        metavar="RATIO",
        help="fail if a figure in NEW is less than RATIO times as good as in OLD",
    )
    sub.set_defaults(parser=sub, body=_compare)


def add_page(commands: argparse._SubParsersAction[CommandParser]) -> None:
    """Add `msgbench page`."""
    sub = commands.add_parser(
        "page",
        help="put tables and pictures of results into a page",
        description=page.__doc__ or "",
        epilog="Exit status: 0, 2 for wrong usage.\n",
        arguments="PAGE.md FILE.json...",
    )
    sub.add_argument("page", type=Path, metavar="PAGE.md")
    sub.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    sub.set_defaults(parser=sub, body=_fill_page)


def _compare(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    (old, _), (new, _) = (_read(parser, path) for path in (arguments.old, arguments.new))
    table, gains = compare.comparison(old, new)
    if not gains:
        parser.error(f"{arguments.old} and {arguments.new} have no row in common")
    tables.show(table)
    if arguments.at_least is not None and min(gains) < arguments.at_least:
        sys.stderr.write(f"{PROGRAM}: the worst figure is {min(gains):.2f} times as good as before\n")
        return cli.EXIT_FAILURE
    return 0


def _fill_page(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if why := plot.missing(Path("page.png")):
        parser.error(why)
    results: list[Result] = []
    ran_on: dict[str, Any] = {}
    for path in arguments.files:
        of_file, ran_on = _read(parser, path)
        results += of_file
    try:
        page.fill(arguments.page, results, ran_on)
    except OSError as error:
        parser.error(f"{error.filename or arguments.page}: {error.strerror}")
    except ValueError as error:
        parser.error(f"{arguments.page}: {error}")
    return 0


def _read(parser: argparse.ArgumentParser, path: Path) -> tuple[list[Result], dict[str, Any]]:
    try:
        return record.read(path)
    except OSError as error:
        parser.error(f"{path}: {error.strerror}")
    except ValueError as error:
        parser.error(f"{path}: {error}")
