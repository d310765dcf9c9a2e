# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Parse msgcontrol's arguments: a destination and a command, or a subprogram with arguments of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from msgd.programs import cli
from msgd.tools.msgcontrol.command import Command
from msgd.tools.msgcontrol.commands import COMMANDS, LEFT_TO_SMBCONTROL
from msgd.tools.msgcontrol.commands.general import MSG_CLEANUP
from msgd.tools.msgcontrol.destination import DAEMONS, check_destination
from msgd.tools.msgcontrol.samba_options import add_samba_options
from msgd.tools.msgcontrol.subprogram import Actions, Subprogram
from msgd.tools.msgcontrol.subprograms import SUBPROGRAMS
from msgd.wire.message_types import type_number

PROGRAM = "msgcontrol"

_TIMEOUT = 10.0

_USAGE = "msgcontrol [OPTION...] DESTINATION COMMAND [ARG...]"

_DESCRIPTION = "Send a control message to one process or to all of them, and print the answers."

_EPILOG = """\
destinations:
  all            every process except this one, in a cluster on all nodes
  self           this process
  PID, PID.TASK or PID.TASK/UNIQUE
                 a server id, as msgd and its programs print it; in a cluster,
                 with the number of its node before it: NODE:PID
  {daemons}
                 a daemon, found by its pid file
  NAME           every process that has registered this name (see msgstatus)

commands:
{commands}

without a destination:
{subprograms}

examples:
  msgcontrol msgd ping                  check that msgd answers
  msgcontrol all debuglevel             print every process's debug levels
  msgcontrol msgd debug 'all:1 msgd:5'  log msgd's own work in detail
  msgcontrol -t 2 --json all ping       wait 2 seconds; print JSON for scripts
  msgcontrol -s /etc/samba/smb.conf smbd reload-config
                                        make Samba's smbd reload its smb.conf
  msgcontrol smbd close-share public    disconnect everybody from a share
  msgcontrol 4711 send 0xF001 @/tmp/x   send a file's contents as a message
  msgcontrol 4711 call PING hello       send a PING and print its PONG
  msgcontrol events auth --json         follow Samba's authentication events

Better than smbcontrol: The syntax, the messages and the printed answers are
those of smbcontrol, whose {left}
are not here. Destinations and commands ignore case. msgcontrol returns as soon
as everybody has answered, and does not wait out the timeout for processes that
have no handler: msgd's say so, and Samba's are asked with a PING. It says who
has not answered, and why. Of several answers of one process it prints the
first. Texts that go through a pipe (pool-usage) are there when it returns. A
name stands for all processes that have it. Samba's Python processes are asked
at the task that they have a name for. A user who may not open the lock
directory is served by msgd's gateway, as far as `msgd:allow types` allows.

Exit status: 0 if every destination received the message (and answered, if the
command has an answer), 1 if not, 2 for wrong usage (1 with smbcontrol). With
`all`, processes without a handler do not count if another process has one.
Whether one of Samba's processes has a handler for a message without an answer
cannot be known.
"""


def make_parser() -> cli.Parser:
    """The parser of msgcontrol's arguments and those of its subprograms, from which the manual page is generated."""
    parser = _make_own_parser()
    parser.subprograms = {one.name: _make_subprogram_parser(one, one.load()) for one in SUBPROGRAMS}
    return parser


def _make_own_parser() -> cli.Parser:
    epilog = _EPILOG.format(
        daemons=", ".join(DAEMONS),
        commands=_rows([(command.usage, command.help) for command in COMMANDS]),
        subprograms=_rows([(one.usage, one.help) for one in SUBPROGRAMS]),
        left=", ".join(LEFT_TO_SMBCONTROL[:-1]) + f" and {LEFT_TO_SMBCONTROL[-1]}",
    )
    parser = cli.Parser(PROGRAM, _DESCRIPTION, epilog, _USAGE)
    parser.add_argument(
        "-t",
        "--timeout",
        metavar="SECONDS",
        type=cli.seconds,
        default=_TIMEOUT,
        help=f"how long to wait for delivery and answers (default: {_TIMEOUT:g})",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as one JSON object instead")
    parser.add_argument(
        "--reply-type", metavar="TYPE", type=_type, help="with call: the type of the answer, by name or number"
    )
    add_samba_options(parser)
    parser.add_argument("destination", metavar="DESTINATION", type=_destination, help="who gets the message; see below")
    parser.add_argument("command", metavar="COMMAND", type=_command, help="what to ask for; see below")
    parser.add_argument("arguments", metavar="ARG", nargs="*", default=[], help="what the command needs")
    commands = [command.name for command in COMMANDS if command is not MSG_CLEANUP]  # whoever types ms wants msgd
    parser.completion_words = [*DAEMONS, "all", "self", *commands, *(one.name for one in SUBPROGRAMS)]
    parser.completion_command = "msgstatus --names"
    return parser


def _make_subprogram_parser(subprogram: Subprogram, actions: Actions) -> cli.Parser:
    """The parser of a subprogram's arguments."""
    name = f"{PROGRAM} {subprogram.name}"
    description = f"{subprogram.help[:1].upper()}{subprogram.help[1:]}."
    parser = cli.Parser(name, description, "", f"{PROGRAM} [OPTION...] {subprogram.usage}")
    add_samba_options(parser)
    actions.add_arguments(parser)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments.

    Adds `run` to the namespace: what runs the subprogram that is asked for.  Where that is None, `request` too: what is
    to be sent.  Raises Refused.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _make_own_parser()
    position = _first_word(parser, words)
    for subprogram in SUBPROGRAMS:
        if position is not None and words[position].lower() == subprogram.name:
            actions = subprogram.load()
            own = _make_subprogram_parser(subprogram, actions)
            parsed = own.parse_intermixed_args(words[:position] + words[position + 1 :])
            parsed.run = actions.run
            return parsed
    parsed = parser.parse_intermixed_args(words)
    parsed.run = None
    command: Command = parsed.command
    if not command.least_arguments <= len(parsed.arguments) <= len(command.arguments):
        wanted = " ".join(command.arguments) or "no arguments"
        parser.error(f"{command.name} takes {wanted}, not {' '.join(parsed.arguments) or 'nothing'}")
    try:
        parsed.request = command.request(parsed.arguments, parsed.reply_type)
    except ValueError as error:
        parser.error(f"{' '.join((command.name, *parsed.arguments))}: {error}")
    return parsed


def _first_word(parser: cli.Parser, words: Sequence[str]) -> int | None:
    """The position of the first word that is no option and no option's argument."""
    is_argument = False
    for position, word in enumerate(words):
        if is_argument:
            is_argument = False
        elif word == "--":
            return position + 1 if position + 1 < len(words) else None
        elif not word.startswith("-") or word == "-":
            return position
        else:
            is_argument = word in parser.options_with_argument
    return None


def _rows(rows: Sequence[tuple[str, str]]) -> str:
    """A table of two columns; a long first cell has its line alone."""
    width = 26
    lines = []
    for usage, text in rows:
        lines.append(f"  {usage:<{width}}{text}" if len(usage) < width else f"  {usage}  {text}")
    return "\n".join(lines)


def _type(text: str) -> int:
    try:
        return type_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _destination(text: str) -> str:
    try:
        return check_destination(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _command(name: str) -> Command:
    folded = name.lower()
    for command in COMMANDS:
        if command.name == folded:
            return command
    if folded in LEFT_TO_SMBCONTROL:
        raise argparse.ArgumentTypeError(f"msgcontrol has no {folded}; smbcontrol has it")
    import difflib  # slow to import, and needed only here

    names = [command.name for command in COMMANDS]
    near = [one for one in names if one.startswith(folded)] or difflib.get_close_matches(folded, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(names)}"
    raise argparse.ArgumentTypeError(f"no command {name!r}; {hint}")
