# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Fixtures for the tests of msgd.presence."""

from __future__ import annotations

from pathlib import Path

import pytest

from msgd import Config


@pytest.fixture
def config(scratch: Path) -> Config:
    """A configuration whose rendezvous directory does not exist yet."""
    return Config(lock_directory=str(scratch / "lock"), messaging_type="dgram")
