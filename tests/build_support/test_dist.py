# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`make dist`: the source archive of a release."""

from __future__ import annotations

import email
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from build_support import dist, project
from build_support.project import ROOT
from tests.build_support.conftest import Tree


@pytest.fixture(autouse=True)
def epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


def names(archive: Path) -> set[str]:
    """The files of an archive, below its one directory."""
    with tarfile.open(archive) as packed:
        return {member.name.partition("/")[2] for member in packed if member.isfile()}


def git(tree: Tree, *arguments: str) -> None:
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=tree.path, check=True, capture_output=True)


def test_equal_trees_make_equal_archives(tmp_path: Path) -> None:
    made = []
    for name, mode in (("one", 0o600), ("other", 0o644)):
        tree = Tree(tmp_path / name)
        tree.configure("--quiet", f"--prefix=/opt/{name}")
        for path in tree.path.rglob("*.md"):
            path.chmod(mode)
            os.utime(path, (mode, mode))
        made.append(dist.make(tree.path, tmp_path / f"{name}-dist").read_bytes())
    assert made[0] == made[1]


def test_it_holds_what_git_knows_and_its_metadata(tree: Tree, tmp_path: Path) -> None:
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "commit", "-qm", "all of it")
    (tree.path / "untracked").write_text("")
    tree.configure("--quiet")
    archive = dist.make(tree.path, tmp_path)
    version = project.read(ROOT).version
    assert archive.name == f"msgd-{version}.tar.gz"
    held = names(archive)
    assert {"PKG-INFO", "configure.py", "pyproject.toml", "msgd/__init__.py", "docs/packaging.md"} < held
    assert not {name for name in held if name == "untracked" or "_registry" in name or name.startswith("debian/")}
    with tarfile.open(archive) as packed:
        file = packed.extractfile(f"msgd-{version}/PKG-INFO")
        assert file is not None
        metadata = email.message_from_bytes(file.read())
    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == ("msgd", version, ">=3.11")
    requirements = metadata.get_all("Requires-Dist", [])
    assert 'python-daemon>=2.3; extra == "daemon"' in requirements
    assert """iceoryx2; (platform_machine == 'x86_64') and extra == "bench\"""" in requirements
