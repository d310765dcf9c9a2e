# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""docs/architecture.md names files and methods that exist; the conformance suite is numbered like its contract."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()

PATHS = sorted(set(re.findall(r"[\w/]+/\w+\.py\b", PAGE)))
METHODS = sorted(set(re.findall(r"\b_?[A-Z]\w+\.(?!md\b)_?[a-z]\w+", PAGE)))

CLAUSES = [int(number) for number in re.findall(r"^(\d+)\. \*\*", PAGE, re.MULTILINE)]


def _methods_by_class() -> dict[str, set[str]]:
    """What each class of the package, or those of its name, define, with what their bases of the package define."""
    methods: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for path in (ROOT / "msgd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                functions = (one.name for one in ast.walk(node) if isinstance(one, ast.FunctionDef))
                methods.setdefault(node.name, set()).update(functions)
                bases.setdefault(node.name, set()).update(one.id for one in node.bases if isinstance(one, ast.Name))
    return {name: found.union(*(methods.get(base, set()) for base in bases[name])) for name, found in methods.items()}


DEFINED = _methods_by_class()


@pytest.mark.parametrize("path", PATHS)
def test_file(path: str) -> None:
    assert (ROOT / "msgd" / path).is_file() or (ROOT / path).is_file()


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str) -> None:
    owner, _, method = name.partition(".")
    assert method in DEFINED[owner]


def test_clauses() -> None:
    """They are numbered from 1 on, and the conformance suite's files are numbered like them."""
    assert list(range(1, 15)) == CLAUSES
    files = (ROOT / "tests" / "backends" / "contract").glob("test_[0-9]*.py")
    assert {int(one.name.split("_")[1]) for one in files} <= set(CLAUSES)


def test_glossary_is_sorted() -> None:
    rows = PAGE[PAGE.index("\n## Glossary\n") :].splitlines()
    words = [row.split("|")[1].strip().lower() for row in rows if row.startswith("| ")][2:]
    assert words == sorted(words)
