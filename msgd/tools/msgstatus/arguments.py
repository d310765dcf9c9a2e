# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Parse msgstatus's arguments."""

from __future__ import annotations

from msgd.programs import cli

PROGRAM = "msgstatus"

_INTERVAL = 1.0
"""Seconds between two refreshes of --watch."""

_USAGE = "msgstatus [-s FILE] [--json | --names | --watch [SECONDS]] [-V]"

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


def make_parser() -> cli.Parser:
    """The parser of msgstatus's arguments.  The manual page is generated from it."""
    parser = cli.Parser(PROGRAM, _DESCRIPTION, _EPILOG, _USAGE)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print one JSON object instead")
    how.add_argument("--names", action="store_true", help="print only the names that processes have, one on each line")
    how.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=cli.seconds,
        const=_INTERVAL,
        help=f"refresh the table every SECONDS until Ctrl-C (default: {_INTERVAL:g})",
    )
    return parser
