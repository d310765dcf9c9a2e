# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Counting and logging of dropped messages.

Rule 1. No message is dropped silently: each is counted by its reason.
Rule 2. No peer can flood the log: each reason is logged once a second at most, with the number of messages since its
        last line.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from msgd.events import DROPPED, fields

LOG_INTERVAL = 1.0
"""Seconds between two log lines for the same reason."""


class Pace:
    """Limits the rate of log lines for each reason: the first is due at once, then one in each LOG_INTERVAL."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}
        self._unlogged: Counter[str] = Counter()

    def due(self, reason: str, number: int = 1) -> int:
        """Add `number` events; return how many to log now, unlogged earlier ones included, or 0 if it is too early."""
        self._unlogged[reason] += number
        now = time.monotonic()
        if now - self._logged.get(reason, -math.inf) < LOG_INTERVAL:
            return 0
        self._logged[reason] = now
        return self._unlogged.pop(reason)


class Drops:
    """Counts dropped messages by reason, and logs them at a limited rate."""

    def __init__(self, logger: logging.Logger) -> None:
        self.counts: Counter[str] = Counter()
        self.on_drop: Callable[[str, int], None] | None = None
        """Called with the reason and the number."""
        self._logger = logger
        self._pace = Pace()
        self._lock = threading.RLock()  # a signal's handler may drop something, too

    def __call__(self, reason: str, detail: str, number: int = 1, about_it: Mapping[str, object] = {}) -> None:
        """Count `number` messages as dropped for `reason`, which is one of a few fixed phrases.

        `detail` goes into the log line, and `about_it` holds further fields for the journal.
        """
        with self._lock:
            self.counts[reason] += number
            new = self._pace.due(reason, number)
        if self.on_drop is not None:
            self.on_drop(reason, number)
        if new:
            extra = fields(DROPPED, REASON=reason, NUMBER=new, **about_it)
            text = "dropped %d message%s, %s: %s"
            self._logger.warning(text, new, "" if new == 1 else "s", reason, detail, extra=extra)
