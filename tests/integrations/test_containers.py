# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A directory that two pid namespaces share by mistake: what is lost between them is a gap, as docs/web.md says."""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from msgd.pubsub import Gap, GapReason, PubSub
from tests.support.daemons import ENVIRONMENT, PATIENCE

PROGRAM = """
import sys
from msgd.pubsub import PubSub
print(bool(PubSub(sys.argv[1]).publish("a", 1)))
"""


def test_what_another_pid_namespace_publishes_is_a_gap(scratch: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    told: queue.SimpleQueue[object] = queue.SimpleQueue()
    with PubSub(scratch / "lock", check_interval=0.05) as pubsub:
        pubsub.subscribe("a", lambda event: told.put(event.data), on_gap=told.put)
        subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", PROGRAM, str(scratch / "lock")],
            env=ENVIRONMENT,
            check=True,
            timeout=PATIENCE,
        )
        assert told.get(timeout=PATIENCE) == Gap(GapReason.OVERDUE, 1)
