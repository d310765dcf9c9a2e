"""Scratch copies of the tree to configure, install and uninstall for real."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from build_support.project import ROOT

NETWORK_PATIENCE = 600
"""Seconds for a test that fetches packages: half a minute where the index is near and nothing else runs."""

NOT_COPIED = shutil.ignore_patterns("build", "tests", ".*", "__pycache__", "_registry.py", "*.egg-info")


class Tree:
    """A copy of the tree that nobody has configured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copytree(ROOT, path, ignore=NOT_COPIED)

    @property
    def registry(self) -> Path:
        return self.path / "msgd" / "_registry.py"

    def run(self, *command: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command in the tree; the test's time limit is its own."""
        done = subprocess.run(command, cwd=self.path, capture_output=True, text=True, check=False)
        assert done.returncode == expect, f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def configure(self, *options: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("./configure.py", *options, expect=expect)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "tree")
