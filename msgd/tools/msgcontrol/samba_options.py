# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The options that all of Samba's programs have, and what they mean for msgcontrol.

--leak-report and --leak-report-full are taken and do nothing: there is no talloc here.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from msgd.config import Config
from msgd.config.kinds import LogLevel
from msgd.config.parameters import find
from msgd.errors import ConfigError
from msgd.programs import cli
from msgd.programs.debug_levels import python_level
from msgd.programs.smb_conf import load_beside_daemon


class _Usage(argparse.Action):
    """Print the usage line and exit."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        parser.print_usage()
        parser.exit(0)


def add_samba_options(parser: cli.Parser) -> None:
    """Add Samba's common options to those that the parser has already."""
    add = parser.add_argument
    add("-d", "--debuglevel", metavar="LEVEL", type=_level, help="log msgcontrol's own work at this level, 0 to 10")
    add("--debug-stdout", action="store_true", help="log to stdout instead of stderr")
    add("-l", "--log-basename", metavar="DIR", help="log to DIR/log.msgcontrol")
    add(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        type=_option,
        default=[],
        help="set a parameter of smb.conf; may be given several times",
    )
    add("--leak-report", "--leak-report-full", action="store_true", help=argparse.SUPPRESS)
    add("--usage", action=_Usage, nargs=0, help="show how the program is called")
    add("-?", action="help", help="the same as --help")


def _level(text: str) -> LogLevel:
    try:
        return LogLevel(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name.strip() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name.strip(), value.strip()


def load_config(arguments: argparse.Namespace) -> Config:
    """Read the smb.conf that -s names, and set what --option says.  Parameters of Samba's alone are passed over."""
    config = load_beside_daemon("msgcontrol", arguments.configfile)
    given = {parameter.attribute: value for name, value in arguments.option if (parameter := find(name)) is not None}
    return config.replace(**given) if given else config


def start_log(program: str, arguments: argparse.Namespace) -> None:
    """Log what -d, -l and --debug-stdout ask for; without them, errors to stderr."""
    if arguments.debuglevel is None and arguments.log_basename is None:
        cli.log_errors_only(program)
        return
    level = python_level(arguments.debuglevel or 0)
    handlers: Sequence[logging.Handler]
    if arguments.log_basename is None:
        handlers = [logging.StreamHandler(sys.stdout if arguments.debug_stdout else sys.stderr)]
    else:
        path = os.path.join(arguments.log_basename, f"log.{program}")
        try:
            handlers = [logging.FileHandler(path, errors="backslashreplace")]
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
    logging.basicConfig(level=level, format=f"{program}: %(message)s", handlers=handlers)
