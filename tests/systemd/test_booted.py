# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd installed in a container that a real systemd has booted: each check of inside.py is a test here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.build_support.conftest import Tree
from tests.support.container import DISTRIBUTION_PYTHON, TIMEOUT, checks_of, run_checks, unfit

INSIDE = Path(__file__).with_name("inside.py")
REASON = unfit()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What was seen inside, by check."""
    directory = tmp_path_factory.mktemp("booted")
    trees = {}
    for name, option in (("tree", "--with-systemd"), ("tree-without-systemd", "--without-systemd")):
        tree = Tree(directory / name)
        tree.configure("--prefix=/usr", f"--with-python={DISTRIBUTION_PYTHON}", option, "--quiet")
        trees[tree.path] = f"/srv/{name}"
    out = directory / "out"
    out.mkdir()
    return run_checks(INSIDE, out, trees)


@pytest.mark.timeout(TIMEOUT + 60)
@pytest.mark.parametrize("check", checks_of(INSIDE))
def test_inside(report: dict[str, dict[str, Any]], check: str) -> None:
    assert check in report, f"it came to its end before that; made were {', '.join(report)}"
    assert report[check]["fault"] is None, report[check]["fault"]
