"""Counting and logging what is given up: nothing is lost silently, and no peer can flood the log."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping

from msgd.events import DROPPED, fields

LOG_INTERVAL = 1.0
"""Seconds between two lines of the log about the same reason."""


class Pace:
    """Lets each reason be logged at once, then once a second at most, with the number of what there was meanwhile."""

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}
        self._unlogged: Counter[str] = Counter()

    def due(self, reason: str, number: int = 1) -> int:
        """How many to log now: these and the earlier ones that were not logged; 0 if it is too early."""
        self._unlogged[reason] += number
        now = time.monotonic()
        if now - self._logged.get(reason, -math.inf) < LOG_INTERVAL:
            return 0
        self._logged[reason] = now
        return self._unlogged.pop(reason)


class Drops:
    """Counts dropped messages by reason, and logs them at a Pace."""

    def __init__(self, logger: logging.Logger) -> None:
        self.counts: Counter[str] = Counter()
        self._logger = logger
        self._pace = Pace()

    def __call__(self, reason: str, detail: str, number: int = 1, about_it: Mapping[str, object] = {}) -> None:
        """Count `number` messages dropped for `reason` (one of a few fixed phrases).

        `detail` is for the log, and `about_it` are fields for the journal.
        """
        self.counts[reason] += number
        new = self._pace.due(reason, number)
        if new:
            extra = fields(DROPPED, REASON=reason, NUMBER=new, **about_it)
            text = "dropped %d message%s, %s: %s"
            self._logger.warning(text, new, "" if new == 1 else "s", reason, detail, extra=extra)
