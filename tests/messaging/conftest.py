# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Each test here runs once for each variant of each messaging type that is compiled in, as those of the contract do."""

from __future__ import annotations

from tests.backends.conftest import (  # noqa: F401  # fixtures
    config,
    make_config,
    messaging,
    peer,
    pytest_generate_tests,
    scratch_config,
    start,
)
