"""A rendezvous directory to be present in."""

from __future__ import annotations

from pathlib import Path

import pytest

from msgd import Config


@pytest.fixture
def config(scratch: Path) -> Config:
    return Config(lock_directory=str(scratch / "lock"), messaging_type="dgram")
