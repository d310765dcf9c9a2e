# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol: send a control message to running processes, as smbcontrol does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from msgd.config import Config
from msgd.config.kinds import LogLevel
from msgd.errors import TransportError
from msgd.messaging import Messaging
from msgd.programs import cli
from msgd.programs.debug_levels import DebugLevels
from msgd.tools.msgcontrol.arguments import PROGRAM, make_parser, parse
from msgd.tools.msgcontrol.command import Command, Refused, Way
from msgd.tools.msgcontrol.destination import ALL, Members, check_directory, find_destinations, pids_with_files
from msgd.tools.msgcontrol.exchange import Exchange
from msgd.tools.msgcontrol.outcome import Outcome
from msgd.tools.msgcontrol.output import print_answer, print_json
from msgd.tools.msgcontrol.pipe import read_text_of
from msgd.tools.msgcontrol.samba_options import load_config, start_log
from msgd.wire.header import Message

__all__ = ["main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run msgcontrol with these arguments (None: the process's own) and return its exit status."""
    return cli.run(PROGRAM, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = parse(argv)
        start_log(PROGRAM, arguments)
        config = load_config(arguments)
        if arguments.run is not None:
            status: int = arguments.run(arguments, config)
            return status
        return _do_command(arguments, config)
    except Refused as refused:
        sys.stderr.write(f"{PROGRAM}: {refused}\n")
        return cli.EXIT_FAILURE


def _do_command(arguments: argparse.Namespace, config: Config) -> int:
    command: Command = arguments.command
    if command.way is Way.PIPE and arguments.destination == ALL:
        raise Refused(f"{command.name} can only be sent to one process, not to all")
    on_answer = _ignore if arguments.json else partial(print_answer, command)
    check_directory(arguments.destination, config)
    seen = pids_with_files(config) if command.here is not None else frozenset()
    try:
        # A message not taken within -t is dropped, so close() has nothing to wait for.
        messaging = Messaging(config.replace(close_timeout=0))
    except TransportError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        from msgd.tools.msgcontrol.gateway import run_through_gateway  # asyncio is slow to import

        request, to, timeout = arguments.request, arguments.destination, arguments.timeout
        return _report(arguments, run_through_gateway(config, error, command, request, to, timeout, on_answer))
    with messaging:
        return _do_as_member(arguments, config, messaging, seen, on_answer)


def _do_as_member(
    arguments: argparse.Namespace,
    config: Config,
    messaging: Messaging,
    seen: frozenset[int],
    on_answer: Callable[[Message], None],
) -> int:
    """Do the command as a process of the directory."""
    command: Command = arguments.command
    DebugLevels(LogLevel("0")).serve(messaging)  # the destination `self` is this process
    there = Members(messaging)
    destinations = find_destinations(arguments.destination, there, config)
    if command.here is not None:
        if len(destinations) > 1 and command.takes_one:
            raise Refused(f"{command.name} is for one process, not for {len(destinations)}")
        done = command.here(messaging, destinations, seen)
        if done.line:
            print(done.line, flush=True)
        return 0 if done.is_success else cli.EXIT_FAILURE
    if command.before is not None:
        command.before(config)
    if command.way is Way.PIPE:
        outcome = read_text_of(messaging, command, destinations[0], arguments.request, arguments.timeout)
    else:
        exchange = Exchange(messaging, there, command, on_answer, to_all=arguments.destination == ALL)
        outcome = exchange.run(destinations, arguments.request, arguments.timeout)
    return _report(arguments, outcome)


def _report(arguments: argparse.Namespace, outcome: Outcome) -> int:
    """Print what has not been printed yet, and return the exit status."""
    if arguments.json:
        print_json(arguments.destination, outcome)
    elif outcome.text:
        print(outcome.text, end="" if outcome.text.endswith("\n") else "\n", flush=True)
    fault = outcome.fault(to_all=arguments.destination == ALL)
    if fault is None:
        if outcome.command.way is Way.PIPE and not outcome.text:
            name = outcome.command.name
            sys.stderr.write(
                f"{PROGRAM}: {outcome.delivered[0]} has written nothing; it may have no handler for {name}\n"
            )
        return 0
    sys.stderr.write(f"{PROGRAM}: {fault}\n")
    return cli.EXIT_FAILURE


def _ignore(message: Message) -> None:
    """Called for each answer with --json, which prints all answers at the end."""
