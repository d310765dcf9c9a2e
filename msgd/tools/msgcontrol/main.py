# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol: send a control message to running processes, as smbcontrol does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from msgd.config import Config
from msgd.config.kinds import LogLevel
from msgd.messaging import Messaging
from msgd.programs import cli
from msgd.programs.debug_levels import DebugLevels
from msgd.tools.msgcontrol.arguments import PROGRAM, make_parser, parse
from msgd.tools.msgcontrol.commands import Command
from msgd.tools.msgcontrol.destination import check_directory, find_destinations
from msgd.tools.msgcontrol.exchange import Exchange
from msgd.tools.msgcontrol.output import print_answer, print_json
from msgd.wire.header import Message

__all__ = ["main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run msgcontrol with these arguments (None: the process's own) and return its exit status."""
    return cli.run(PROGRAM, lambda: _run(parse(argv)))


def _run(arguments: argparse.Namespace) -> int:
    cli.log_errors_only(PROGRAM)
    config = Config.load(arguments.configfile)
    command: Command = arguments.command
    check_directory(arguments.destination, config)
    # A message not taken within -t is dropped, so close() has nothing to wait for.
    with Messaging(config.replace(close_timeout=0)) as messaging:
        DebugLevels(LogLevel("0")).serve(messaging)  # the destination `self` is this process
        destinations = find_destinations(arguments.destination, messaging)
        on_answer = _ignore if arguments.json else partial(print_answer, command)
        exchange = Exchange(messaging, command, on_answer, to_all=arguments.destination == "all")
        outcome = exchange.run(destinations, arguments.payload, arguments.timeout)
    if arguments.json:
        print_json(arguments.destination, outcome)
    fault = outcome.fault(to_all=arguments.destination == "all")
    if fault is None:
        return 0
    sys.stderr.write(f"{PROGRAM}: {fault}\n")
    return cli.EXIT_FAILURE


def _ignore(message: Message) -> None:
    """Called for each answer with --json, which prints all answers at the end."""
