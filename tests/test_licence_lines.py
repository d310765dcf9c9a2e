# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Every Python file says under which licence it is, and whose it is."""

from __future__ import annotations

from build_support.project import ROOT

LINES = ["# SPDX-License-Identifier: GPL-3.0-or-later", "# Copyright: The msgd authors"]


def test_every_python_file_begins_with_the_licence_lines() -> None:
    files = [ROOT / "configure.py", ROOT / "setup.py"]
    for directory in ("msgd", "build_support", "tests"):
        files += sorted((ROOT / directory).rglob("*.py"))
    without = []
    for file in files:
        lines = file.read_text().splitlines()
        if lines[:1] == ["#!/usr/bin/env python3"]:
            del lines[0]
        if lines[:2] != LINES:
            without.append(str(file.relative_to(ROOT)))
    assert without == []
