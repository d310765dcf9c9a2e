# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Find the Python interpreter that msgd will run with. What it has is asked of itself, in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from build_support.report import ConfigureError, Report

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON_TRIED = (3, 19)
DISTRIBUTION_PYTHON = "/usr/bin/python3"
"""The interpreter for which the distribution's Python packages (python3-tdb, ...) are made."""
CANDIDATES = (
    "python3",
    DISTRIBUTION_PYTHON,
    *(f"python3.{minor}" for minor in range(OLDEST_PYTHON[1], NEWEST_PYTHON_TRIED[1] + 1)),
)


@dataclass(frozen=True)
class Interpreter:
    """The answers of one interpreter to probe.py."""

    command: str
    version: str
    prefix: str
    executable: str
    base: str
    """The interpreter that a virtual environment was made from; without one, the same as `executable`."""
    site_packages: str
    modules: Mapping[str, str]
    """The modules that were asked about and can be imported, each with its version or ""."""
    facilities: Mapping[str, str]
    """The facilities of the kernel, each with the reason why it cannot be used, or ""."""


def probe(command: str, modules: Iterable[str], report: Report) -> Interpreter | None:
    """Ask one interpreter; None if it does not answer or is too old.

    It runs in isolated mode, because the programs must run for every user. In pip's build environment, isolated mode
    also sees the environment that msgd is being installed into, instead of the one that pip builds in.
    """
    done = report.run([command, "-I", str(Path(__file__).with_name("probe.py")), *modules])
    try:
        answers = json.loads(done.stdout)
    except json.JSONDecodeError:
        return None
    if tuple(answers.pop("version_info")) < OLDEST_PYTHON:
        return None
    return Interpreter(command, **answers)


def named(command: str, modules: Iterable[str], report: Report) -> Interpreter:
    """The interpreter that the user asked for; ConfigureError if it cannot be used."""
    if (found := probe(command, modules, report)) is None:
        raise ConfigureError(f"--with-python: {command} is not an interpreter of Python 3.11 or later")
    return found


def best(commands: Iterable[str], modules: tuple[str, ...], report: Report) -> Interpreter:
    """The best interpreter: one that has the first module, then the second, and so on; of equals, the first named."""
    usable = [found for command in commands if (found := probe(command, modules, report))]
    if not usable:
        raise ConfigureError("no Python 3.11 or later was found; name one with --with-python=PATH")
    return max(usable, key=lambda found: [module in found.modules for module in modules])


def environment(root: Path) -> Path:
    """The directory of the virtual environment that `--bootstrap` makes for work in the tree."""
    return root / "build" / "venv"


def environment_python(root: Path) -> str:
    """The path of that environment's interpreter."""
    return str(environment(root) / "bin" / "python3")
