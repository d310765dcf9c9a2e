"""Which Python interpreter msgd is for, and what that interpreter has: asked of itself, as a process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from build_support.report import ConfigureError, Report

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON_TRIED = (3, 19)
DISTRIBUTION_PYTHON = "/usr/bin/python3"
"""The interpreter that the distribution's own Python packages (python3-tdb, ...) are for."""
CANDIDATES = (
    "python3",
    DISTRIBUTION_PYTHON,
    *(f"python3.{minor}" for minor in range(OLDEST_PYTHON[1], NEWEST_PYTHON_TRIED[1] + 1)),
)


@dataclass(frozen=True)
class Interpreter:
    """What one interpreter answered to probe.py."""

    command: str
    version: str
    prefix: str
    executable: str
    base: str
    """The interpreter a virtual environment was made from; otherwise the same as `executable`."""
    site_packages: str
    modules: Mapping[str, str]
    """The modules asked for that can be imported, each with its version or ""."""
    facilities: Mapping[str, str]
    """The kernel's facilities, each with why it cannot be used or ""."""


def probe(command: str, modules: Iterable[str], report: Report) -> Interpreter | None:
    """Ask one interpreter; None if it does not answer or is too old.

    It is asked in isolated mode: the programs must run for every user, and in pip's build environment that looks past
    the build environment at the one msgd is being installed into.
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
    """The interpreter that the user asked for; ConfigureError if it will not do."""
    if (found := probe(command, modules, report)) is None:
        raise ConfigureError(f"--with-python: {command} is not an interpreter of Python 3.11 or later")
    return found


def best(commands: Iterable[str], modules: tuple[str, ...], report: Report) -> Interpreter:
    """The interpreter that has the first of the modules, then the second, and so on; of equals the first named."""
    usable = [found for command in commands if (found := probe(command, modules, report))]
    if not usable:
        raise ConfigureError("no Python 3.11 or later found; name one by --with-python=PATH")
    return max(usable, key=lambda found: [module in found.modules for module in modules])


def environment(root: Path) -> Path:
    """The virtual environment that `--bootstrap` makes for work in the tree."""
    return root / "build" / "venv"


def environment_python(root: Path) -> str:
    return str(environment(root) / "bin" / "python3")
