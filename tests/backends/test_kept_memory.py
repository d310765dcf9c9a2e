# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The memory of long messages is not fetched from the system again for each of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends import page_faults


@pytest.mark.parametrize(("messaging_type", "length"), [("dgram", 1 << 16), ("tdb", 1 << 18)])
def test_memory_is_kept_for_the_next_message(scratch: Path, messaging_type: str, length: int) -> None:
    """A message takes as many pages as it has; malloc fetched most of them anew for each, with tdb twice."""
    command = (sys.executable, "-P", page_faults.__file__, str(scratch), messaging_type, str(length))
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert float(done.stdout) < length / 4096 / 4
