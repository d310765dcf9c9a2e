# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Measure a benchmark: the options that all benchmarks share, the run, and the output of the result."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgd.bench import plot, record, tables
from msgd.bench.command import PROGRAM, BadRequest, Command
from msgd.bench.options import at_least, cpus, seconds
from msgd.bench.results import Result
from msgd.bench.runner import Session
from msgd.config import Config
from msgd.errors import ConfigError
from msgd.presence.socket_path import check_socket_directory
from msgd.programs import cli

_SHARED_MEMORY = Path("/dev/shm")
_PATIENCE = 10.0


def add_common_options(parser: argparse.ArgumentParser, command: Command) -> None:
    """Add the options that every benchmark has.  `command` gives the defaults of some."""
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


def measure(parser: argparse.ArgumentParser, arguments: argparse.Namespace, command: Command) -> int:
    """Run the benchmark, print and save its result, and return the exit status of msgbench."""
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
