# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What argparse knows of a program: its arguments and its subcommands. argparse has no public names for them."""

from __future__ import annotations

import argparse

from msgd.programs.cli import Parser


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a program, except those that are hidden from its help."""
    return [action for action in parser._actions if action.help is not argparse.SUPPRESS]


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands of a program, each with its own parser; empty if it has none."""
    if isinstance(parser, Parser) and parser.subprograms:
        return dict(parser.subprograms)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}
