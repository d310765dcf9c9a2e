# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""docs/samba.md: each of the 28 scenarios names a test that exists, and each command is explained or listed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from msgd.tools.msgcontrol.commands import LEFT_TO_SMBCONTROL

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "samba.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| .* \| `([\w/.]+)::(\w+)` \|$", PAGE, re.MULTILINE)


def test_all_scenarios_are_there() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 29))


@pytest.mark.parametrize(("number", "file", "name"), ROWS)
def test_the_test_exists(number: str, file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    assert name in {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}


def test_commands_that_are_left_out_are_named() -> None:
    for name in LEFT_TO_SMBCONTROL:
        assert f"`{name}`" in PAGE
