# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Parse msgcontrol's arguments."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

from msgd.programs import cli
from msgd.tools.msgcontrol.commands import COMMANDS, Command
from msgd.tools.msgcontrol.destination import DAEMONS, check_destination

PROGRAM = "msgcontrol"

_TIMEOUT = 10.0

_USAGE = "msgcontrol [OPTION...] DESTINATION COMMAND [ARG...]"

_DESCRIPTION = "Send a control message to one process or to all of them, and print the answers."

_EPILOG = """\
destinations:
  PID, PID.TASK or PID.TASK/UNIQUE
                 a server id, as msgd and its programs print it; in a cluster,
                 with the number of its node before it: NODE:PID
  {daemons}
                 a daemon, found by its pid file
  NAME           every process that has registered this name (see msgstatus)
  all            every process except this one, in a cluster on all nodes
  self           this process

commands:
{commands}

examples:
  msgcontrol msgd ping                  check that msgd answers
  msgcontrol all debuglevel             print every process's debug levels
  msgcontrol msgd debug 'all:1 msgd:5'  log msgd's own work in detail
  msgcontrol -t 2 --json all ping       wait 2 seconds; print JSON for scripts
  msgcontrol -s /etc/samba/smb.conf smbd reload-config
                                        make Samba's smbd reload its smb.conf

Exit status: 0 if every destination received the message (and answered, if the
command has an answer), 1 if not, 2 for wrong usage.
"""


def make_parser() -> cli.Parser:
    """The parser of msgcontrol's arguments.  The manual page is generated from it."""
    width = max(len(command.usage) for command in COMMANDS) + 2
    commands = "\n".join(f"  {command.usage:<{width}}{command.help}" for command in COMMANDS)
    parser = cli.Parser(PROGRAM, _DESCRIPTION, _EPILOG.format(daemons=", ".join(DAEMONS), commands=commands), _USAGE)
    parser.add_argument(
        "-t",
        "--timeout",
        metavar="SECONDS",
        type=cli.seconds,
        default=_TIMEOUT,
        help=f"how long to wait for delivery and answers (default: {_TIMEOUT:g})",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as one JSON object instead")
    parser.add_argument("destination", metavar="DESTINATION", type=_destination, help="who gets the message; see below")
    parser.add_argument("command", metavar="COMMAND", type=_command, help="what to ask for; see below")
    parser.add_argument("arguments", metavar="ARG", nargs="*", default=[], help="what the command needs")
    parser.completion_words = [*DAEMONS, "all", "self", *(command.name for command in COMMANDS)]
    parser.completion_command = "msgstatus --names"
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments, and add the message's data to the namespace as `payload`."""
    parser = make_parser()
    parsed = parser.parse_args(argv)
    command: Command = parsed.command
    if len(parsed.arguments) != len(command.arguments):
        wanted = " ".join(command.arguments) or "no arguments"
        parser.error(f"{command.name} takes {wanted}, not {' '.join(parsed.arguments) or 'nothing'}")
    try:
        parsed.payload = command.payload(parsed.arguments)
    except ValueError as error:
        parser.error(f"{command.name} {' '.join(parsed.arguments)}: {error}")
    return parsed


def _destination(text: str) -> str:
    try:
        return check_destination(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _command(name: str) -> Command:
    for command in COMMANDS:
        if command.name == name:
            return command
    names = [command.name for command in COMMANDS]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(names)}"
    raise argparse.ArgumentTypeError(f"no command {name!r}; {hint}")
