# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`pip install .`, of a tree that has not been configured and of one that has."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from build_support import registry
from tests.build_support.conftest import NETWORK_PATIENCE, Tree

pytestmark = [pytest.mark.network, pytest.mark.timeout(NETWORK_PATIENCE)]


class Environment:
    """A virtual environment that a tree is installed into."""

    def __init__(self, path: Path, tree: Tree) -> None:
        self.path = path
        self._tree = tree
        tree.run(sys.executable, "-m", "venv", str(path))

    def pip(self, *arguments: str) -> None:
        self._tree.run(str(self.path / "bin" / "pip"), "--disable-pip-version-check", "--no-input", *arguments)

    @property
    def site_packages(self) -> Path:
        (package,) = self.path.glob("lib/python3.*/site-packages")
        return package


@pytest.fixture
def environment(tree: Tree, tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment", tree)


def test_an_unconfigured_tree_is_configured_with_the_defaults(tree: Tree, environment: Environment) -> None:
    environment.pip("install", ".")
    installed = registry.read(environment.site_packages)
    assert [module.name for module in installed.modules] == ["dgram", "stream"]
    assert installed.python == f"{environment.path}/bin/python3"
    assert installed.directories["prefix"] == "/usr/local"
    assert (environment.site_packages / "msgd" / "py.typed").exists()
    assert not (environment.site_packages / "build_support").exists()
    assert not tree.registry.exists()
    tree.run(str(environment.path / "bin" / "msgparm"), "-V")
    # The same again with the newest pip.
    environment.pip("install", "--upgrade", "pip")
    environment.pip("install", "--no-deps", "--force-reinstall", ".")
    assert registry.read(environment.site_packages) == installed


def test_a_configured_tree_is_installed_as_it_was_configured(tree: Tree, environment: Environment) -> None:
    tree.configure("--prefix=/opt/m", "--quiet")
    environment.pip("install", "--no-deps", ".")
    assert (environment.site_packages / "msgd" / "_registry.py").read_text() == tree.registry.read_text()
