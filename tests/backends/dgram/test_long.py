# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Long messages on dgram: their memory is not fetched from the system again for each of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.backends.dgram import page_faults


def test_memory_is_kept_for_the_next_message(scratch: Path) -> None:
    """A message of 64 KiB takes 16 pages; malloc fetched 13 of them anew for each message."""
    command = (sys.executable, "-P", page_faults.__file__, str(scratch))
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert float(done.stdout) < 4
