# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the subcommands are made of: the description of a benchmark, and the parser of a subcommand's arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from msgd.bench.results import Result
from msgd.bench.runner import Session
from msgd.config import Config
from msgd.programs import cli

PROGRAM = "msgbench"


class BadRequest(Exception):
    """The request cannot be carried out.  The text is shown to the user; the exit status is 2."""


class Command(NamedTuple):
    """A benchmark.

    `summary` is its line in the list of commands; `description` and `epilog` are the text of its --help.  `add_options`
    adds its own options to a parser.  `seconds` and `runs` are the defaults of the options with these names.
    """

    name: str
    summary: str
    description: str
    epilog: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Session, argparse.Namespace], Result]
    seconds: float = 2.0
    runs: int = 3


def check_fits(option: str, length: int, config: Config) -> None:
    """Raise BadRequest if the configuration does not allow messages of this length."""
    if length > config.max_message_size:
        raise BadRequest(f"{option}: {length} bytes are more than msgd:max message size ({config.max_message_size})")


class CommandParser(cli.Parser):
    """The parser of a subcommand.  Its parameters are those that argparse passes."""

    def __init__(self, *, prog: str, description: str, epilog: str, arguments: str = "[OPTION...]") -> None:
        super().__init__(prog, description, epilog, usage=f"{prog} {arguments}")
        self.configfile.default = argparse.SUPPRESS  # a default would override an -s before the command
