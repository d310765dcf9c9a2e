# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The pace of log lines that the connection processes and the main process keep together.

Each client has a connection process of its own, so a pace of each process's own would let a user with many clients
write as many lines.  The times of the last lines are in memory that the main process shares with all of them.

A time is one aligned word, and nobody waits for anybody: two processes that look at the same instant may both write a
line.  What a process has not told it keeps, and adds it to its own next line.
"""

from __future__ import annotations

import mmap
import time
from collections import Counter
from enum import IntEnum

from msgd.drops import LOG_INTERVAL

_USERS = 1024
"""Users with the same remainder share a pace."""


class Told(IntEnum):
    """What is told at a pace, for each user."""

    TYPE_REFUSED = 0
    CONNECTION_FAILED = 1
    CONNECTION_ENDED = 2


class SharedPace:
    """The times of the last lines, by what they tell and of which user."""

    def __init__(self) -> None:
        self._times = memoryview(mmap.mmap(-1, len(Told) * _USERS * 8)).cast("Q")
        self._unlogged: Counter[tuple[Told, int]] = Counter()

    def due(self, what: Told, uid: int) -> int:
        """Add one event; return how many of this process to log now, or 0 if it is too early."""
        self._unlogged[what, uid] += 1
        place, now = what * _USERS + uid % _USERS, time.monotonic_ns()
        last = self._times[place]
        if last and now - last < LOG_INTERVAL * 1e9:
            return 0
        self._times[place] = now
        return self._unlogged.pop((what, uid))
