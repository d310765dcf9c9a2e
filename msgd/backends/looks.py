"""Looking a moment longer before going to sleep.

To sleep and to be woken costs more than a score of messages, and a peer that answers at once does so within that time.
So a receiver that has nothing to do goes on looking for some microseconds first.  How long follows from how that went:
as long as it finds something it looks longer, while it is in vain it hardly looks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_MIN, _MAX = 16, 128
"""Looks before the next sleep; each takes a third of a microsecond to one."""


class Looks:
    """How often this receiver looks."""

    def __init__(self) -> None:
        self.number = _MIN

    def __call__(self, look: Callable[[], T]) -> T | None:
        """What `look` returns as soon as that is something; None if it never is."""
        for _ in range(self.number):
            found = look()
            if found:
                self.number = min(2 * self.number, _MAX)
                return found
        self.number = max(self.number // 2, _MIN)
        return None
