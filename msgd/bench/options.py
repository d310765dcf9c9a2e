# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The options that several subcommands share, and the values that they accept."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable

from msgd.bench.subjects import PLAIN, Subject, choose, compiled_in

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}


def add_types(parser: argparse.ArgumentParser, *, variants: bool) -> None:
    """--types; by default all that are compiled in, with or without the variants of a type."""
    there = compiled_in()
    default = there if variants else tuple(name for name in there if name in PLAIN)
    parser.add_argument(
        "--types",
        type=_types,
        default=choose(default),
        metavar="TYPE,...",
        help=f"what to measure, of {', '.join(there)} (default: {'all' if variants else ', '.join(default)})",
    )


def _types(text: str) -> list[Subject]:
    try:
        return choose([name.strip() for name in text.split(",")])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def at_least(least: int) -> Callable[[str], int]:
    """A whole number that is not less than `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return value

    return parse


def numbers(least: int) -> Callable[[str], list[int]]:
    """Whole numbers with commas between, each not less than `least`."""
    one = at_least(least)
    return lambda text: [one(part.strip()) for part in text.split(",")]


def seconds(text: str) -> float:
    """A time that is more than nothing and at most a day."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def size(text: str) -> int:
    """A number of bytes: 1000, 64K, 16M."""
    match = re.fullmatch(r"(\d{1,12})([kKmM]?)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes, as 1000, 64K or 16M")
    return int(match[1]) * _UNITS[match[2].lower()]


def sizes(text: str) -> list[int]:
    """Numbers of bytes with commas between."""
    return [size(part) for part in text.split(",")]


def cpus(text: str) -> list[int]:
    """CPUs of this machine with commas between: that of the first process, of the second, and so on in turn."""
    allowed = os.sched_getaffinity(0)
    chosen = numbers(0)(text)
    for cpu in chosen:
        if cpu not in allowed:
            raise argparse.ArgumentTypeError(
                f"this process may not run on CPU {cpu}; it may on {', '.join(map(str, sorted(allowed)))}"
            )
    return chosen
