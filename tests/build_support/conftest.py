# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Scratch copies of the tree, which tests configure, install and uninstall for real."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from build_support.project import ROOT

NETWORK_PATIENCE = 600
"""The time limit in seconds of a test that fetches packages. With a near index it takes half a minute."""

NOT_COPIED = shutil.ignore_patterns("build", "tests", ".*", "__pycache__", "_registry.py", "_native.*.so", "*.egg-info")


class Tree:
    """A copy of the tree that has not been configured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copytree(ROOT, path, ignore=NOT_COPIED)

    @property
    def registry(self) -> Path:
        return self.path / "msgd" / "_registry.py"

    def run(self, *command: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command in the tree, for as long as the test may run."""
        done = subprocess.run(command, cwd=self.path, capture_output=True, text=True, check=False)
        assert done.returncode == expect, f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def configure(self, *options: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("./configure.py", *options, expect=expect)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "tree")
