# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
from __future__ import annotations

from pathlib import Path

import pytest

from tests.build_support.conftest import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "tree")
