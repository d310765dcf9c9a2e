# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What a subprogram of msgcontrol is: a word in the place of the destination, with arguments and options of its own.

To add one, write it into a file of `subprograms/` and a row into the table there.  A process whose registered name is
the same word is reached by its server id.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from msgd.config import Config
from msgd.programs import cli


class Actions(NamedTuple):
    """What a subprogram does.

    `add_arguments` adds the arguments and options to a parser that has Samba's already.  `run` does the work, and
    returns the exit status.
    """

    add_arguments: Callable[[cli.Parser], None]
    run: Callable[[argparse.Namespace, Config], int]


class Subprogram(NamedTuple):
    """One subprogram: what help and completion say of it.

    `usage` is what is typed after `msgcontrol [OPTION...]`; `help` is one clause.  `load` imports the rest, which the
    commands to a destination start without.
    """

    name: str
    usage: str
    help: str
    load: Callable[[], Actions]
