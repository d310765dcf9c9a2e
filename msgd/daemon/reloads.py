# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The pace of reloads: whoever may send SIGHUP or SMB_CONF_UPDATED cannot keep a process busy with reading smb.conf.

Rule 1.  BURST reloads may follow each other at once, so that whoever asks a process after a reload is answered by one
that has reloaded, as always.

Rule 2.  After that there is one reload every INTERVAL.  What is asked for in between becomes one reload at its end, so
the last change is never missed.

Rejected: reloading only if the file has changed.  Files that it includes count, too, and the log is to be re-opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from msgd.daemon.loop import NEVER, Loop

BURST = 8
INTERVAL = 1.0
"""Seconds."""


class Reloads:
    """Calls `reload` as often as the rules above allow; ask() takes the arguments for it."""

    def __init__(self, loop: Loop, reload: Callable[..., None]) -> None:
        self._reload = reload
        self._allowed = float(BURST)
        self._counted_at = time.monotonic()
        self._timer = loop.call_later(NEVER, self._reload_late)
        self._waiting: tuple[str, dict[str, object]] | None = None

    def ask(self, why: str, **about_it: object) -> None:
        """Reload, now or in a while."""
        now = time.monotonic()
        self._allowed = min(BURST, self._allowed + (now - self._counted_at) / INTERVAL)
        self._counted_at = now
        self._waiting = why, about_it
        if self._timer.is_running:
            return
        if self._allowed >= 1:
            self._reload_now()
        else:
            self._timer.restart((1 - self._allowed) * INTERVAL)

    def _reload_late(self) -> None:
        if self._waiting is not None:
            self.ask(self._waiting[0], **self._waiting[1])

    def _reload_now(self) -> None:
        assert self._waiting is not None
        (why, about_it), self._waiting = self._waiting, None
        self._allowed -= 1
        self._reload(why, **about_it)
