# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The metadata of the package in Python's own format: METADATA of an installation, and PKG-INFO of a source archive.

With it, pip and importlib.metadata know of an msgd that they have not installed. The format is PyPA's core metadata.
"""

from __future__ import annotations

import tomllib
from pathlib import Path


def render(root: Path) -> str:
    """The text for the tree at `root`."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    return "".join(
        [
            "Metadata-Version: 2.4\n",
            f"Name: {project['name']}\n",
            f"Version: {project['version']}\n",
            f"Summary: {project['description']}\n",
            f"License-Expression: {project['license']}\n",
            *(f"License-File: {name}\n" for name in project["license-files"]),
            *(f"Classifier: {classifier}\n" for classifier in project["classifiers"]),
            f"Requires-Python: {project['requires-python']}\n",
            *(f"Requires-Dist: {requirement}\n" for requirement in project["dependencies"]),
            *(_extra(name, requirements) for name, requirements in extras.items()),
            "Description-Content-Type: text/markdown\n\n",
            (root / project["readme"]).read_text(),
        ]
    )


def _extra(name: str, requirements: list[str]) -> str:
    rows = (f"Requires-Dist: {_only_in(name, requirement)}\n" for requirement in requirements)
    return f"Provides-Extra: {name}\n{''.join(rows)}"


def _only_in(extra: str, requirement: str) -> str:
    """The requirement, which may have a condition of its own, with the condition that the extra is wanted."""
    package, _, condition = requirement.partition(";")
    return f'{package}; {f"({condition.strip()}) and " if condition else ""}extra == "{extra}"'
