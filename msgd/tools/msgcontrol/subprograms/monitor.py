# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol monitor: its arguments.  The work is in monitor.py beside this directory, which only it imports."""

from __future__ import annotations

import argparse

from msgd.programs import cli
from msgd.tools.msgcontrol.monitor import run
from msgd.tools.msgcontrol.subprogram import Actions
from msgd.wire.message_types import type_number


def _add_arguments(parser: cli.Parser) -> None:
    parser.add_argument("--type", metavar="TYPE", type=_type, action="append", default=[], help="only this type")
    parser.add_argument("--from", dest="sources", metavar="PROCESS", help="only what this pid or name sends")
    parser.add_argument("--to", dest="destinations", metavar="PROCESS", help="only what this pid or name gets")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print a JSON object for each message")
    how.add_argument("--pcap", metavar="FILE", help="write a file for wireshark (link type 147); - is stdout")


def _type(text: str) -> int:
    try:
        return type_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


MONITOR = Actions(_add_arguments, run)
