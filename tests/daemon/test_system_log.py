# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Syslog, as a daemon without a log file has it."""

from __future__ import annotations

import re
import subprocess

from tests.support.daemons import ENVIRONMENT, PATIENCE, Place
from tests.support.system_log import SystemLog, needs_mounts

INFO = 3 << 3 | 6
"""The facility daemon and the priority info, as they stand before a line."""


@needs_mounts
def test_a_daemon_without_a_log_file_logs_to_syslog(place: Place) -> None:
    with SystemLog(place) as log:
        subprocess.run(log.command("-D"), env=ENVIRONMENT, timeout=PATIENCE, check=True)
        pid = int(place.pid_file.read_text())
        line = log.line()
        assert re.fullmatch(rf"<{INFO}>.* msgd\[{pid}\]: msgd \S+ is ready as {pid}/.*", line), line
