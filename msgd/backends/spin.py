# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Spinning: polling for a short while before going to sleep.

Going to sleep and being woken up takes tens of microseconds, as long as handling twenty messages.  A peer that answers
at once does so in less than that.  So a receiver with nothing to do polls a number of times before it sleeps.

Rule 1. Success spins longer, failure backs off: the number of polls doubles when one finds something, and halves when
        none does, down to a few, or to none while no processor is idle.  What the first poll finds was there before,
        and is no success.
Rule 2. Every so often the number goes up to its maximum whatever happened.  Without this, two processes that wait for
        each other's answers and hardly spin would both always sleep.  The maximum is about the time that a peer takes
        to wake up and answer.
Rule 3. Spinning is for idle processors only.  Where more processes want to run than there are processors, the maximum
        is what the transport says still pays.

Rule 3 is strict.  A receiver that spins on a busy machine keeps the sender from running, and so finds a message late
but finds it: success says little there.  With 16 listeners to a broadcast, each spent 25 of 40 microseconds a message
on spinning, as long as one process too many counted as idle.  To spin less where processors are idle was measured too
(128 polls at most, and none after a few failures): broadcasts gained nothing, and the ping of two processes lost up to
a third.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FEW, _MANY = 16, 256
"""Polls before a sleep, at least and at most; one takes a third of a microsecond to a microsecond."""
_CHECK_EVERY = 32
"""Calls between two checks whether processors are idle; after each check the number of polls is at its maximum."""


class Spinner:
    """Polls before a receiver goes to sleep: at most `number` times in the next call.

    `crowded` is the maximum while no processor is idle.
    """

    def __init__(self, crowded: int = 0) -> None:
        self.number = _FEW
        self._crowded = crowded
        self._most = _MANY
        self._calls = 0

    def __call__(self, poll: Callable[[], T]) -> T | None:
        """The first result of `poll` that is true; None if there is none, and the caller should sleep."""
        number = self.number
        found = poll() if number else None
        if found:
            return found
        for _ in range(number - 1):
            found = poll()
            if found:
                break
        self._note(bool(found))
        return found or None

    def many(self, poll: Callable[[int], int | None]) -> int | None:
        """The same, if `poll` polls so many times at most in one call.

        It returns how many times it has polled until it found something, 0 if it has not, None if it does not know.
        """
        found = poll(self.number)
        if found != 1 and found is not None:
            self._note(bool(found))
        return found

    def _note(self, found: bool) -> None:
        """Count a call, and choose the number of polls for the next one."""
        self._calls += 1
        if self._calls % _CHECK_EVERY == 0:
            self.number = self._most = _MANY if _processors_are_idle() else self._crowded
        elif found:
            self.number = min(2 * self.number, self._most)
        else:
            self.number = max(self.number // 2, _FEW if self._most == _MANY else 0)


def _processors_are_idle() -> bool:
    """Whether no more processes want to run than there are processors for this one."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as file:
            running = int(file.read(128).split()[3].partition(b"/")[0])
    except OSError:
        return False
    return running <= len(os.sched_getaffinity(0))
