from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.build.conftest import Tree
from tests.daemon.daemons import Place, scratch_place


@pytest.fixture
def place() -> Iterator[Place]:
    with scratch_place() as place:
        yield place


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "tree")
