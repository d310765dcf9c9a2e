# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A clock for time limits in tests: it runs while the machine works, and hardly while the machine is suspended.

A virtual machine that shares its host stalls for seconds at times, with all or one of its processors.  A test must not
blame a process for time that the process did not get.  So a child on each processor reads the real clock every few
milliseconds and adds up what has passed, but no more than `MOST` at a time: if the child was not woken for seconds,
nobody on that processor was.  The clock shows the smallest of these sums.  A process that waits for another one, or for
its own timeout, does not keep these children from running, so its wait counts in full.
"""

from __future__ import annotations

import mmap
import os
import time
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Self

from tests.support.harness import Channel, Child

Moment = tuple[int, ...]

_INTERVAL = 0.002
MOST = 0.05
"""Seconds.  A child that is woken later than that was stalled."""
_NANOSECONDS = 1_000_000_000


class MachineTime:
    """The clock.  It runs in its `with` block; processes forked in the block can read it, too."""

    def __init__(self) -> None:
        self._processors = sorted(os.sched_getaffinity(0))
        self._counted = memoryview(mmap.mmap(-1, 8 * len(self._processors))).cast("Q")
        self._children = ExitStack()
        self.counting: list[Child] = []

    def __enter__(self) -> Self:
        with ExitStack() as children:
            for place, processor in enumerate(self._processors):
                child = children.enter_context(Child(partial(self._count, place, processor)))
                assert child.hear() == "counting"
                self.counting.append(child)
            self._children = children.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._children.close()
        self.counting.clear()

    def _count(self, place: int, processor: int, channel: Channel) -> None:
        os.sched_setaffinity(0, {processor})
        most = int(MOST * _NANOSECONDS)
        before = time.monotonic_ns()
        channel.send("counting")
        while True:
            time.sleep(_INTERVAL)
            now = time.monotonic_ns()
            self._counted[place] += min(now - before, most)
            before = now

    def now(self) -> Moment:
        """The present moment, for since()."""
        return tuple(self._counted)

    def since(self, moment: Moment) -> float:
        """The seconds that the machine has worked since `moment`."""
        return min(now - then for now, then in zip(self._counted, moment, strict=True)) / _NANOSECONDS
