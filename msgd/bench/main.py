# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgbench: measure messaging on this machine, and compare it with the alternatives."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from msgd.bench import fanout, flood, latency, mesh, ping, pubsub, scale, sizes, torture
from msgd.bench.command import PROGRAM, Command, CommandParser
from msgd.bench.dbench import command as dbench
from msgd.bench.measure import add_common_options, measure
from msgd.bench.saved import add_compare, add_page
from msgd.programs import cli

COMMANDS: tuple[Command, ...] = (
    ping.COMMAND,
    flood.COMMAND,
    sizes.COMMAND,
    latency.COMMAND,
    fanout.COMMAND,
    pubsub.COMMAND,
    mesh.COMMAND,
    scale.COMMAND,
    dbench.COMMAND,
    torture.COMMAND,
)

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
        title="commands", metavar="COMMAND", required=True, prog=PROGRAM, parser_class=CommandParser
    )
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name, help=command.summary, description=command.description, epilog=command.epilog
        )
        command.add_options(sub)
        add_common_options(sub, command)
        sub.set_defaults(parser=sub, body=lambda sub, arguments, command=command: measure(sub, arguments, command))
    add_compare(commands)
    add_page(commands)
    return parser
