# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The tests of the compiled hot path need it; everything else in tests/ runs with it and without it."""

from __future__ import annotations

import pytest

from msgd.native import native
from tests.backends.conftest import (  # noqa: F401  # fixtures
    config,
    make_config,
    messaging,
    peer,
    pytest_generate_tests,
    scratch_config,
    start,
)


@pytest.fixture(autouse=True)
def _compiled() -> None:
    if native is None:
        pytest.skip("the hot path is not compiled: run make, without MSGD_PURE")
