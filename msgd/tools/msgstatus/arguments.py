# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Parse msgstatus's arguments."""

from __future__ import annotations

from msgd.programs import cli

PROGRAM = "msgstatus"

_INTERVAL = 1.0
"""Seconds between two refreshes of --watch."""

_HUNG = 1.0
"""Seconds after which a process that takes none of its messages is hung."""

_USAGE = "msgstatus [-s FILE] [--json | --names | --watch [SECONDS]] [--wide] [--hung SECONDS] [-V]"

_DESCRIPTION = "Show the processes that use messaging, and what dead ones have left behind."

_EPILOG = """\
columns:
  NODE           with clustering = yes: the number of this node.  Below the table
                 are all nodes, as this node's ctdbd sees them: ok, or
                 disconnected, unhealthy, disabled, banned, deleted, stopped
  KIND           msgd, samba, or samba3 (see msgd:samba3)
  QUEUE          its backlog in messages; known only with messaging type tdb
  HUNG           for how many seconds a message waits that the process does not
                 take.  Where messages wait, msgstatus looks for so long.
  STATE          alive;
                 dead: its files stay until the next clean-up;
                 starting: it cannot receive messages yet;
                 elsewhere: it lives, but in another pid namespace
with --wide also:
  UNIQUE ID      tells it from other processes with the same pid
  LISTENS        the classes of broadcasts that the process receives
  WAITS IN       where in the kernel a process that is hung waits
An unknown value is shown as -, and as null in --json.

examples:
  msgstatus               print the table once
  msgstatus --watch 5     redraw it every 5 seconds until q or Ctrl-C
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
        help=f"refresh the table every SECONDS until q or Ctrl-C (default: {_INTERVAL:g})",
    )
    parser.add_argument("--wide", action="store_true", help="print all columns, and nothing shortened")
    parser.add_argument(
        "--hung",
        metavar="SECONDS",
        type=cli.seconds,
        default=_HUNG,
        help=f"a process that takes no message for so long is hung (default: {_HUNG:g})",
    )
    return parser
