# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The bounds that CONTRIBUTING gives: the lines of a file and of a class."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE_MAX = 450
CLASS_MAX = 300


def test_contributing_says_so() -> None:
    said = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
    assert f"a file has at most {FILE_MAX} lines and a class at most {CLASS_MAX}" in said


def test_within_bounds() -> None:
    too_long = []
    for path in (*ROOT.glob("msgd/**/*.py"), *ROOT.glob("build_support/*.py")):
        text = path.read_text()
        if text.count("\n") > FILE_MAX:
            too_long.append(path.name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno + 1 > CLASS_MAX:
                too_long.append(node.name)
    assert not too_long
