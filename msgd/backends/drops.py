"""Counting and logging what is given up: nothing is lost silently, and no peer can flood the log."""

from __future__ import annotations

import logging
import time
from collections import Counter

LOG_INTERVAL = 1.0
"""Seconds between two lines of the log about the same reason."""


class Drops:
    """Counts dropped messages by reason; logs each reason at once, then once a second at most with the number."""

    def __init__(self, logger: logging.Logger) -> None:
        self.counts: Counter[str] = Counter()
        self._logger = logger
        self._logged: dict[str, tuple[float, int]] = {}

    def __call__(self, reason: str, detail: str, number: int = 1) -> None:
        """Count `number` messages dropped for `reason` (one of a few fixed phrases); `detail` is for the log."""
        self.counts[reason] += number
        now = time.monotonic()
        when, counted = self._logged.get(reason, (-LOG_INTERVAL, 0))
        if now - when >= LOG_INTERVAL:
            new = self.counts[reason] - counted
            self._logged[reason] = (now, self.counts[reason])
            self._logger.warning("dropped %d message%s, %s: %s", new, "" if new == 1 else "s", reason, detail)
