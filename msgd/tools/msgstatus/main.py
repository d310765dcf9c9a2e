# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgstatus: show the processes in the rendezvous directory, as smbstatus shows the clients of a server.

It only reads the directory and never joins it.  So any user who may read the directory can run it, it does not list
itself, and no process notices it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from msgd.programs import cli
from msgd.programs.smb_conf import load_beside_daemon
from msgd.tools.msgstatus.arguments import PROGRAM, make_parser
from msgd.tools.msgstatus.hung import HungProcesses
from msgd.tools.msgstatus.status import Status, read_status
from msgd.tools.msgstatus.tables import plain_table, print_rich

__all__ = ["main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run msgstatus with these arguments (None: the process's own) and return its exit status."""
    return cli.run(PROGRAM, lambda: _run(make_parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    cli.log_errors_only(PROGRAM)
    config = load_beside_daemon(PROGRAM, arguments.configfile)
    hung = HungProcesses(config, arguments.hung)
    if arguments.watch is not None:
        from msgd.tools.msgstatus.watch import watch  # not needed as a rule

        return watch(config, arguments.watch, hung, is_wide=arguments.wide)
    if not arguments.names:
        hung.observe()
    status = read_status(config, hung)
    if arguments.json:
        import json  # slow to import, and not needed as a rule

        print(json.dumps(_as_json(status)))
        return 0
    if arguments.names:
        sys.stdout.writelines(f"{name}\n" for name in sorted({name for row in status.rows for name in row.names or ()}))
        return 0
    if not (sys.stdout.isatty() and (status.rows or status.nodes) and print_rich(status, is_wide=arguments.wide)):
        print(plain_table(status, is_wide=arguments.wide))
    for note in status.notes:
        sys.stderr.write(f"{PROGRAM}: {note}\n")
    return 0


def _as_json(status: Status) -> dict[str, object]:
    return {
        "directory": status.directory,
        "processes": [{"server_id": row.server_id} | row._asdict() for row in status.rows],
        "nodes": [
            {
                "number": node.number,
                "address": node.address,
                "state": node.state,
                "is_own": node.number == status.own_node,
            }
            for node in status.nodes or ()
        ],
        "notes": status.notes,
    }
