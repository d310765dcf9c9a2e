# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The build step imports the standard library and itself: neither msgd, nor configure.py on top of it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from build_support.project import ROOT

SOURCES = sorted((ROOT / "build_support").glob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The first component of each module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_build_step_stands_alone(path: Path) -> None:
    assert set(imported(path)) <= {*sys.stdlib_module_names, "build_support"}


def test_configure_needs_the_standard_library_only() -> None:
    assert set(imported(ROOT / "configure.py")) <= {*sys.stdlib_module_names, "build_support"}
