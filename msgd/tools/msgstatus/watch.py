# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Show the table on a terminal and refresh it until q or Ctrl-C (--watch)."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator

from msgd.config import Config
from msgd.errors import BackendUnavailable
from msgd.tools.msgstatus.hung import HungProcesses
from msgd.tools.msgstatus.status import Status, read_status
from msgd.tools.msgstatus.tables import rich_table

_QUIT = b"q"


def watch(config: Config, interval: float, hung: HungProcesses, *, is_wide: bool) -> int:
    """Redraw the table every `interval` seconds.  A timer is needed because a death does not change the directory."""
    try:
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        raise BackendUnavailable("--watch needs Python's rich: install python3-rich, or pip install rich") from None
    if not sys.stdout.isatty():
        raise BackendUnavailable("--watch needs a terminal; use --json in a loop instead")
    with _single_keys(), Live(screen=True, auto_refresh=False) as live:
        try:
            while True:
                status = read_status(config, hung)
                title, table = Text(_title(config, status), style="reverse"), rich_table(status, is_wide=is_wide)
                live.update(Group(title, table, *map(Text, status.notes)), refresh=True)
                if _is_quit_typed(interval):
                    return 0
        except KeyboardInterrupt:
            return 0


def _title(config: Config, status: Status) -> str:
    alive = sum(row.state == "alive" for row in status.rows)
    hung = sum(row.hung is not None for row in status.rows)
    number = f"{alive} alive" + (f", {hung} hung" if hung else "")
    return f"{status.directory} ({config.messaging_type}): {number}   {time.strftime('%H:%M:%S')}   q: quit"


@contextlib.contextmanager
def _single_keys() -> Iterator[None]:
    """Let keys be read one by one and without an echo, if stdin is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _is_quit_typed(timeout: float) -> bool:
    """Wait until q is typed, at most for `timeout` seconds."""
    deadline = time.monotonic() + timeout
    watched = [sys.stdin.fileno()] if sys.stdin.isatty() else []
    while (left := deadline - time.monotonic()) > 0:
        if select.select(watched, [], [], left)[0]:
            keys = os.read(watched[0], 64)
            if _QUIT in keys.lower():
                return True
            if not keys:  # the terminal is gone: its hangup ends the program
                watched = []
    return False
