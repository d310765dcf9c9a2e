# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench: measure messaging on this machine, and compare it with the alternatives."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgd.bench import compare, fanout, flood, latency, mesh, page, ping, plot, record, scale, sizes, tables, torture
from msgd.bench.command import BadRequest, Command
from msgd.bench.dbench import command as dbench
from msgd.bench.options import at_least, cpus, seconds
from msgd.bench.results import Result
from msgd.bench.runner import Session
from msgd.config import Config
from msgd.errors import ConfigError
from msgd.presence.socket_path import check_socket_directory
from msgd.programs import cli

PROGRAM = "msgbench"

COMMANDS: tuple[Command, ...] = (
    ping.COMMAND,
    flood.COMMAND,
    sizes.COMMAND,
    latency.COMMAND,
    fanout.COMMAND,
    mesh.COMMAND,
    scale.COMMAND,
    dbench.COMMAND,
    torture.COMMAND,
)

_SHARED_MEMORY = Path("/dev/shm")
_PATIENCE = 10.0

_DESCRIPTION = """\
Measure messaging on this machine: the tables of the 2006 page, and what one
would ask today.
"""

_EPILOG = """\
`msgbench COMMAND --help` explains each command and has examples.

Compare only the rows of one table.  Their runs take turns (A B C A B C), so
that other work on the machine disturbs all of them alike.  Absolute figures
are valid only for this machine.

Exit status: 0 if all runs succeeded, 1 if a message was missing or something
else failed, 2 for wrong usage, 130 for Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run msgbench with these arguments (None: the process's own) and return its exit status."""
    return cli.run(PROGRAM, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    cli.log_errors_only(PROGRAM)
    cli.exit_on_signals()
    parser = make_parser()
    arguments = parser.parse_args(argv)
    chosen: argparse.ArgumentParser = arguments.parser
    status: int = arguments.body(chosen, arguments)
    return status


def make_parser() -> argparse.ArgumentParser:
    """The parser of msgbench's arguments.  The manual page is generated from it."""
    parser = cli.Parser(PROGRAM, _DESCRIPTION, _EPILOG, usage="msgbench [-s FILE] [-V] COMMAND [OPTION...]")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, prog=PROGRAM, parser_class=_CommandParser
    )
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name, help=command.summary, description=command.description, epilog=command.epilog
        )
        command.add_options(sub)
        _add_common_options(sub, command)
        sub.set_defaults(parser=sub, body=lambda sub, arguments, command=command: _measure(sub, arguments, command))
    _add_compare(commands)
    _add_page(commands)
    return parser


def _add_compare(commands: argparse._SubParsersAction[_CommandParser]) -> None:
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


def _add_page(commands: argparse._SubParsersAction[_CommandParser]) -> None:
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


class _CommandParser(cli.Parser):
    """The parser of a subcommand.  Its parameters are those that argparse passes."""

    def __init__(self, *, prog: str, description: str, epilog: str, arguments: str = "[OPTION...]") -> None:
        super().__init__(prog, description, epilog, usage=f"{prog} {arguments}")
        self.configfile.default = argparse.SUPPRESS  # a default would override an -s before the command


def _add_common_options(parser: argparse.ArgumentParser, command: Command) -> None:
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--seconds",
        type=seconds,
        default=command.seconds,
        metavar="S",
        help="seconds that each run measures (default: %(default)g)",
    )
    group.add_argument(
        "--runs",
        type=at_least(1),
        default=command.runs,
        metavar="N",
        help="how often to run each row (default: %(default)s)",
    )
    group.add_argument(
        "--pin",
        type=cpus,
        default=[],
        metavar="CPU,...",
        help="bind the processes to these CPUs in turn",
    )
    group.add_argument(
        "--patience",
        type=seconds,
        default=_PATIENCE,
        metavar="S",
        help="seconds without a message after which one is taken to be lost (default: %(default)g)",
    )
    group.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="where to make scratch directories (default: /dev/shm if it is writable, otherwise the temporary"
        " directory)",
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", type=Path, metavar="FILE", help="write every run and a description of the machine as JSON"
    )
    group.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the result (needs matplotlib)")
    group.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def _measure(parser: argparse.ArgumentParser, arguments: argparse.Namespace, command: Command) -> int:
    ran_on: dict[str, Any] = record.machine()
    for path in filter(None, (arguments.json, arguments.plot)):
        _check_writable(parser, path)
    if arguments.plot and (why := plot.missing(arguments.plot)):
        parser.error(f"--plot {arguments.plot}: {why}")
    config = Config.load(arguments.configfile)
    session = Session(
        config,
        _directory(parser, arguments.directory),
        arguments.seconds,
        arguments.runs,
        arguments.patience,
        arguments.pin,
        arguments.quiet,
    )
    try:
        result = command.run(session, arguments)
    except BadRequest as error:
        parser.error(str(error))
    settings = {"seconds": session.seconds, "runs": session.runs, "pin": list(session.cpus)}
    result.settings = {**settings, **result.settings}
    tables.show(tables.table_of(result))
    if arguments.json:
        with _errors_at(arguments.json):
            record.write(arguments.json, [result], ran_on)
    if arguments.plot:
        with _errors_at(arguments.plot):
            plot.draw(result, arguments.plot)
    if result.failed:
        sys.stderr.write(f"{PROGRAM}: {command.name} failed: {_failures(result)}\n")
        return cli.EXIT_FAILURE
    return 0


@contextlib.contextmanager
def _errors_at(path: Path) -> Iterator[None]:
    """Add the path to an OSError: that of a full disk has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _failures(result: Result) -> str:
    return "; ".join(f"{row.subject}: {row.failures[0]}" for row in result.rows if row.failures)


def _directory(parser: argparse.ArgumentParser, given: Path | None) -> Path:
    if given is None:
        shared = _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK | os.X_OK)
        return _SHARED_MEMORY if shared else Path(tempfile.gettempdir())
    if not given.is_dir() or not os.access(given, os.W_OK | os.X_OK):
        parser.error(f"--directory {given}: not a writable directory")
    directory = given.absolute()
    try:
        check_socket_directory(str(directory / "msgbench12345678" / "lock" / "msg.sock"))
    except ConfigError as error:
        parser.error(f"--directory {given}: {error}")
    return directory


def _check_writable(parser: argparse.ArgumentParser, path: Path) -> None:
    """Report a file that cannot be written before the measurement instead of after it."""
    directory = path.absolute().parent
    if path.is_dir() or not os.access(path if path.exists() else directory, os.W_OK):
        parser.error(f"{path} cannot be written")
