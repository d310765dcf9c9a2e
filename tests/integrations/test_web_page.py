# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""docs/web.md counts the lines that an author writes for msgd; the examples have no more of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "pattern", "lines"),
    [
        ("gunicorn.conf.py", r"^from msgd", 1),
        ("flask_app.py", r"\bcached\b", 2),
        ("fastapi_app.py", r"\btopics\b|\bLifespan\b", 5),
        ("django_app.py", r"CoherentCache|LOCATION", 2),
    ],
)
def test_lines(name: str, pattern: str, lines: int) -> None:
    text = (ROOT / "examples" / "web" / name).read_text()
    assert len([line for line in text.splitlines() if re.search(pattern, line)]) == lines
    assert re.search(rf"\| {lines} \|", (ROOT / "docs" / "web.md").read_text())
