# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Show the table on a terminal and refresh it until Ctrl-C (--watch)."""

from __future__ import annotations

import sys
import time

from msgd.config import Config
from msgd.errors import BackendUnavailable
from msgd.tools.msgstatus.status import read_status
from msgd.tools.msgstatus.tables import rich_table


def watch(config: Config, interval: float) -> int:
    """Redraw the table every `interval` seconds.  A timer is needed because a death does not change the directory."""
    try:
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        raise BackendUnavailable("--watch needs Python's rich: install python3-rich, or pip install rich") from None
    if not sys.stdout.isatty():
        raise BackendUnavailable("--watch needs a terminal; use --json in a loop instead")
    with Live(screen=True, auto_refresh=False) as live:
        try:
            while True:
                status = read_status(config)
                live.update(Group(rich_table(status), *map(Text, status.notes)), refresh=True)
                time.sleep(interval)
        except KeyboardInterrupt:
            return 0
