"""Looking a moment longer before going to sleep.

To sleep and to be woken takes tens of microseconds, as long as a score of messages, and a peer that answers at once
does so within that time.  So a receiver that has nothing to do goes on looking first.  How long follows from how that
went: while it finds something it looks longer, while it is in vain it hardly looks.  Two that wait for each other's
answers and hardly look would both always sleep: so from time to time each looks as long as it takes a peer to wake up
and to answer.  Looking costs nothing on a processor that nobody else wants; where more processes want to run than there
are processors (one that happens to run just then does not count), it looks no more than pays in any case.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FEW, _MANY = 16, 256
"""Looks before the next sleep; each takes a third of a microsecond to one."""
_CHECK_AFTER = 32
"""Calls after which it finds out whether the processors are free, and looks as long as it then may."""


class Looks:
    """How often this receiver looks: `number` times before the next sleep.

    `crowded`: at most so often where the processors are not free.
    """

    def __init__(self, crowded: int = 0) -> None:
        self.number = _FEW
        self._crowded = crowded
        self._most = _MANY
        self._calls = 0

    def __call__(self, look: Callable[[], T]) -> T | None:
        """What `look` returns as soon as that is something; None if it never is."""
        found: T | None = None
        for _ in range(self.number):
            found = look()
            if found:
                break
        self._calls += 1
        if self._calls % _CHECK_AFTER == 0:
            self.number = self._most = _MANY if _processors_are_free() else self._crowded
        elif found:
            self.number = min(2 * self.number, self._most)
        else:
            self.number = max(self.number // 2, min(_FEW, self._most))
        return found or None


def _processors_are_free() -> bool:
    """Whether at most one process more wants to run than there are processors for this one."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as file:
            running = int(file.read(128).split()[3].partition(b"/")[0])
    except OSError:
        return False
    return running <= len(os.sched_getaffinity(0)) + 1
