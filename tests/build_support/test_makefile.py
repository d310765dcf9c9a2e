# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the Makefile says of itself."""

from __future__ import annotations

import re

from build_support.project import ROOT
from tests.build_support.conftest import Tree


def test_help_lists_every_target_in_one_line(tree: Tree) -> None:
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = tree.run("make", "help").stdout.splitlines()
    assert [line.split()[1] for line in lines] == targets.split()
    assert all(re.fullmatch(r"  make [a-z]+ +\S.*", line) for line in lines)
    assert not (tree.path / "build").exists()
