# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The options that several subcommands share, and the parsers of option values."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable

from msgd.bench.subjects import PLAIN, Subject, choose, compiled_in
from msgd.programs import cli

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}


def add_types(parser: argparse.ArgumentParser, *, variants: bool) -> None:
    """Add --types.  The default is every compiled-in messaging type, with the variants of each if `variants`."""
    available = compiled_in()
    default = available if variants else tuple(name for name in available if name in PLAIN)
    parser.add_argument(
        "--types",
        type=_types,
        default=choose(default),
        metavar="TYPE,...",
        help=f"what to measure: any of {', '.join(available)} (default: {'all' if variants else ', '.join(default)})",
    )
    if isinstance(parser, cli.Parser):
        parser.completion_of["--types"] = list(available)


def _types(text: str) -> list[Subject]:
    try:
        return choose([name.strip() for name in text.split(",")])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def at_least(least: int) -> Callable[[str], int]:
    """A parser of whole numbers that are not less than `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return value

    return parse


def numbers(least: int) -> Callable[[str], list[int]]:
    """A parser of comma-separated whole numbers, each not less than `least`."""
    one = at_least(least)
    return lambda text: [one(part.strip()) for part in text.split(",")]


def seconds(text: str) -> float:
    """Parse a number of seconds above 0 and at most 86400, a day."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def size(text: str) -> int:
    """Parse a number of bytes, such as 1000, 64K or 16M."""
    match = re.fullmatch(r"(\d{1,12})([kKmM]?)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, such as 1000, 64K or 16M")
    return int(match[1]) * _UNITS[match[2].lower()]


def sizes(text: str) -> list[int]:
    """Parse comma-separated numbers of bytes."""
    return [size(part) for part in text.split(",")]


def cpus(text: str) -> list[int]:
    """Parse comma-separated CPU numbers.  Each must be one that this process may use."""
    allowed = os.sched_getaffinity(0)
    chosen = numbers(0)(text)
    for cpu in chosen:
        if cpu not in allowed:
            raise argparse.ArgumentTypeError(
                f"this process may not run on CPU {cpu}, only on {', '.join(map(str, sorted(allowed)))}"
            )
    return chosen
