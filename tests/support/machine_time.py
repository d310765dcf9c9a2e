"""A clock for bounds in seconds: it goes on while the machine works, and hardly when it is kept from working.

A machine shared with others stands still for seconds at times, all of it or one of its processors, and what a process
was not given it cannot have wasted.  So a child on each processor looks at the real clock every few milliseconds and
counts what has passed, but no more than `MOST` at a time: if it was not woken for seconds, nobody there was.  What has
passed for all of the processors has passed.  A process that waits for another, or for its own time-out, takes nothing
from these children, so its wait counts in full.
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
"""Seconds; a child that is woken after more of them was kept from working."""
_NANOSECONDS = 1_000_000_000


class MachineTime:
    """The clock, while in its `with` block.  Processes that are forked in the block read it, too."""

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
        """A moment, to be compared with later ones."""
        return tuple(self._counted)

    def since(self, moment: Moment) -> float:
        """Seconds that the machine has worked since then."""
        return min(now - then for now, then in zip(self._counted, moment, strict=True)) / _NANOSECONDS
