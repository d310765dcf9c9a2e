# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""docs/errors-and-log.md: every error class, MESSAGE_ID and drop reason of the code is on the page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import msgd
from msgd import errors, events

PAGE = (Path(__file__).parents[1] / "docs" / "errors-and-log.md").read_text()
SOURCES = sorted(Path(msgd.__file__).parent.rglob("*.py"))

ERRORS = [name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, errors.MsgdError)]
EVENTS = [name for name, one in vars(events).items() if isinstance(one, str) and re.fullmatch("[0-9a-f]{32}", one)]


def _reasons_in(tree: ast.AST) -> Iterator[str]:
    """The literals by which calls of Drops, or of OutQueue.give_up(), say why messages are given up."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            arguments = call.args[:1] if name.endswith(("drop", "drops")) else call.args if name == "give_up" else []
            yield from (one.value for one in arguments if isinstance(one, ast.Constant) and isinstance(one.value, str))


REASONS = sorted({reason for path in SOURCES for reason in _reasons_in(ast.parse(path.read_text()))})


def _rows(start: str, end: str) -> list[list[str]]:
    """The cells of the tables between two headings, row by row."""
    section = PAGE[PAGE.index(f"\n## {start}\n") : PAGE.index(f"\n## {end}\n")]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if "---" not in row[0]]


def _first_cells(start: str, end: str) -> list[str]:
    return [row[0].strip("`") for row in _rows(start, end)]


@pytest.mark.parametrize("name", ERRORS)
def test_error(name: str) -> None:
    assert name in _first_cells("Errors", "Drops")


@pytest.mark.parametrize("name", EVENTS)
def test_event(name: str) -> None:
    """The event is in the table under its own MESSAGE_ID."""
    (row,) = (row for row in _rows("Events", "Exit status") if row[0] == name)
    assert row[1] == f"`{getattr(events, name)}`"


@pytest.mark.parametrize("reason", REASONS)
def test_drop_reason(reason: str) -> None:
    assert reason in _first_cells("Drops", "Events")


def test_nothing_on_the_page_is_gone_from_the_code() -> None:
    assert len(REASONS) > 8, "reasons that are put together at run time escape this file"
    heads = {"error", "reason", "event", "text contains"}
    assert set(_first_cells("Errors", "Drops")) - heads == set(ERRORS)
    assert set(_first_cells("Drops", "Events")) - heads == set(REASONS)
    events_on_the_page = {row[0] for row in _rows("Events", "Exit status") if len(row) == 6} - heads
    assert events_on_the_page == set(EVENTS)
