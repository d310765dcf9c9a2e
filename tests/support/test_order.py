# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The order of the tests: the files that take longest are there, and come first."""

from __future__ import annotations

import pytest

from build_support.project import ROOT
from tests.conftest import LONG


def test_long_files_come_first(request: pytest.FixtureRequest) -> None:
    assert [path for path in LONG if not (ROOT / path).is_file()] == []
    files = list(dict.fromkeys(item.nodeid.partition("::")[0] for item in request.session.items))
    assert files == sorted(files, key=lambda path: LONG.index(path) if path in LONG else len(LONG))
