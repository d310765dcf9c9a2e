# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the Makefile says of itself, and that the hooks before a commit run what it runs."""

from __future__ import annotations

import re

from build_support.project import ROOT
from tests.build_support.conftest import Tree


def test_help_lists_every_target_in_one_line(tree: Tree) -> None:
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = tree.run("env", "-u", "MAKEFLAGS", "make", "--no-print-directory", "help").stdout.splitlines()
    assert [line.split()[1] for line in lines] == targets.split()
    assert all(re.fullmatch(r"  make [a-z-]+ +\S.*", line) for line in lines)
    assert not (tree.path / "build").exists()


def test_the_hooks_run_what_make_check_runs_before_the_tests() -> None:
    check = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    commands = re.findall(r"^\t(?:\$\(PYTHON\) -m |build/venv/bin/)(.*)$", check, re.MULTILINE)
    hooks = re.findall(r"entry: build/venv/bin/(.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    assert [*hooks, "pytest -n auto --dist loadfile $(PYTEST_ARGS)"] == commands
