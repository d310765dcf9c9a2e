# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""build/bin: the programs as they are run from a tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from build_support import launchers, project
from tests.build_support.conftest import Tree


@pytest.fixture
def python_that_shows_its_arguments(tree: Tree) -> None:
    python = tree.path / "build" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor argument; do echo "<$argument>"; done\n')
    python.chmod(0o755)


def test_there_is_one_for_each_program_of_pyproject(tree: Tree) -> None:
    programs = tree.path / "build" / "bin"
    programs.mkdir(parents=True)
    (programs / "of-an-earlier-version").touch()
    launchers.write_tree_programs(tree.path)
    assert sorted(os.listdir(programs)) == [program.name for program in project.read(tree.path).programs]


@pytest.mark.usefixtures("python_that_shows_its_arguments")
def test_they_run_the_tree_they_stand_in_from_anywhere(tree: Tree, tmp_path: Path) -> None:
    launchers.write_tree_programs(tree.path)
    moved = tree.path.rename(tmp_path / "moved tree")
    (tmp_path / "link").symlink_to(moved / "build" / "bin" / "msgcontrol")
    tree.path = moved
    said = tree.run("env", "--chdir=/", str(tmp_path / "link"), "all", "a b", "").stdout
    assert said.splitlines() == ["<-P>", "<-m>", "<msgd.tools.msgcontrol>", "<all>", "<a b>", "<>"]


@pytest.mark.usefixtures("python_that_shows_its_arguments")
def test_what_they_run_can_be_run(tree: Tree) -> None:
    launchers.write_tree_programs(tree.path)
    for program in project.read(tree.path).programs:
        module = program.run_as.replace(".", "/")
        assert (tree.path / f"{module}.py").exists() or (tree.path / module / "__main__.py").exists()
