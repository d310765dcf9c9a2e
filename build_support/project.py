# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What pyproject.toml says: the version, the programs and the packages they need. It is read here and nowhere else."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
"""The tree that this package stands in."""

DAEMONS = "msgd.daemon."
"""A program whose module begins with this is a daemon."""


class Program(NamedTuple):
    """A row of [project.scripts]."""

    name: str
    module: str
    function: str

    @property
    def is_daemon(self) -> bool:
        """Whether it belongs into sbindir and into section 8 of the manual."""
        return self.module.startswith(DAEMONS)

    @property
    def run_as(self) -> str:
        """What stands after `python -m` to run it: the package, if its main function is in the package's main.py."""
        return self.module.removesuffix(".main")


class Project(NamedTuple):
    """The parts of pyproject.toml that the build step needs."""

    version: str
    programs: tuple[Program, ...]
    dependencies: tuple[str, ...]
    optional_dependencies: dict[str, list[str]]

    def extras(self, names: Iterable[str]) -> tuple[str, ...]:
        """The optional dependencies of these names, as pip takes them."""
        return tuple(requirement for name in names for requirement in self.optional_dependencies[name])


def read(root: Path) -> Project:
    """Read the pyproject.toml of the tree at `root`."""
    table = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return Project(
        version=table["version"],
        programs=tuple(
            Program(name, *entry_point.split(":")) for name, entry_point in sorted(table["scripts"].items())
        ),
        dependencies=tuple(table["dependencies"]),
        optional_dependencies=table["optional-dependencies"],
    )
