# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The parts of a subcommand that measures something."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from msgd.bench.results import Result
from msgd.bench.runner import Session
from msgd.config import Config


class BadRequest(Exception):
    """What was asked for cannot be done, whatever runs: the line for the user, who gets exit status 2."""


class Command(NamedTuple):
    """A benchmark: its name, a line, a description and examples for --help, its own options, and how it is run.

    `seconds`, `runs`: the defaults.
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
    """BadRequest if messages of this length are not sent."""
    if length > config.max_message_size:
        raise BadRequest(f"{option}: {length} bytes are more than msgd:max message size, {config.max_message_size}")
