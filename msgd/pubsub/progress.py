# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How much of what has been published a process has handled: the table of publishers beside what came in.

Rule 1.  A slot's publications come in order.  A number that is not the next one is a gap, and it is told at once.
Rule 2.  What has been published and does not come is found by tick(), which compares the table with what has been
    handled: a publication that was in the table at one tick, of a slot that has not moved until the next one, is
    overdue.  The process then sends itself a message (CHECK) and looks again when that comes: until then it has handled
    what lay in front of it.  This finds every loss, whatever the reason: a kill between counting and sending, a full
    queue, a publisher that ended with messages in its memory.
Rule 3.  The process's own publications go through its own queue if they are for itself, too.  Its slot counts as
    handled up to the oldest that is still in flight.
Rule 4.  Where a doubt is left, there is a gap too many rather than one too few.

Rejected: a message by which a publisher introduces itself, one by which it says goodbye, a descriptor that watches each
publisher, and a word from a publisher whose queue was full.  Together they miss what happens to a process before its
first message has arrived, and Rule 2 finds what they find.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from msgd.errors import ContextClosed
from msgd.pubsub.events import Gap, GapReason
from msgd.pubsub.table import SLOTS
from msgd.wire.pubsub import Publish

State = tuple[int | None, bytes]
"""The id of a table (None: there was none) and its slots: what a process's memory reflects."""


class Numbered(Protocol):
    """What Progress needs of a table: the real one, or the mirror of one on another node."""

    @property
    def id(self) -> int:
        """The random id of the table."""

    def snapshot(self) -> bytes:
        """All slots."""

    def number(self, slot: int) -> int:
        """The number of the last publication of a slot."""


T = TypeVar("T", bound=Numbered)


class Progress(Generic[T]):
    """What this process has handled of the publications of one table.  Any thread may call anything."""

    def __init__(self, table: T) -> None:
        self.table = table
        self.lock = threading.Lock()
        """Held for moments, and over a fork."""
        self._handled = bytearray(table.snapshot())
        self._words = memoryview(self._handled).cast("Q")
        self._is_tracking = False
        self._own_slot = -1
        self._own_last = 0
        self._own_in_flight: deque[int] = deque()
        self._suspect: tuple[bytes, bytes] | None = None
        """The table at the last tick, and what had been handled then; None if all had been."""
        self._overdue: tuple[bytes, bytes] | None = None

    # Listening

    def begin(self) -> None:
        """This process hears everything from here on: what has been published until now counts as handled."""
        with self.lock:
            self._handled[:] = self.table.snapshot()
            self._own_in_flight.clear()
            self._suspect = self._overdue = None
            self._is_tracking = True

    def assume(self, handled: Mapping[int, int]) -> None:
        """Count what there was of these slots, up to these numbers, as handled."""
        with self.lock:
            for slot, number in handled.items():
                self._words[slot] = max(self._words[slot], number)

    def end(self) -> None:
        """This process hears nothing from here on."""
        with self.lock:
            self._is_tracking = False

    def state(self) -> State:
        """What has been handled."""
        with self.lock:
            return self.table.id, bytes(self._handled)

    def is_current(self) -> bool:
        """Whether all that has been published until now has been handled here.  It costs about a microsecond."""
        try:
            return self.table.snapshot() == self._handled
        except ContextClosed:
            return False  # this table has just been replaced

    # What comes in

    def is_credible(self, publication: Publish) -> bool:
        """Whether its number can be true."""
        return publication.table != self.table.id or (
            publication.slot < SLOTS and publication.number <= self.table.number(publication.slot)
        )

    def expect(self, publication: Publish) -> Gap | None:
        """The gap in front of a publication, if there is one."""
        with self.lock:
            if not self._is_tracking:
                return None
            if publication.table != self.table.id:
                return Gap(GapReason.TABLE)
            missed = publication.number - self._words[publication.slot] - 1
            return Gap(GapReason.MISSING, missed) if missed > 0 else None

    def note(self, publication: Publish) -> None:
        """A publication has been given to all its subscriptions."""
        slot, number = publication.slot, publication.number
        with self.lock:
            if publication.table != self.table.id:
                return
            if slot == self._own_slot:
                own = self._own_in_flight
                while own and own[0] <= number:
                    own.popleft()
                self._words[slot] = own[0] - 1 if own else self._own_last
            elif number > self._words[slot]:
                self._words[slot] = number

    # What this process publishes

    def note_own(self, slot: int, number: int, *, is_for_itself: bool) -> None:
        """This process is about to send a publication; `is_for_itself`: it is going to handle it, too."""
        with self.lock:
            self._own_slot, self._own_last = slot, number
            if is_for_itself:
                self._own_in_flight.append(number)
            elif not self._own_in_flight:
                self._words[slot] = number

    # What does not come

    def tick(self) -> bool:
        """Compare with the table.  Returns whether something is overdue, so that overdue() should look again."""
        now = self.table.snapshot()
        with self.lock:
            if not self._is_tracking:
                return False
            before, self._suspect = self._suspect, None
            if now != self._handled:
                self._suspect = now, bytes(self._handled)
            if before is None or not _behind(before, self._handled):
                return False
            self._overdue = before
            return True

    def overdue(self) -> Gap | None:
        """What was overdue at the last tick and has not come since; it counts as handled from now on."""
        with self.lock:
            before, self._overdue = self._overdue, None
            if before is None:
                return None
            missed = 0
            for slot, number in _behind(before, self._handled).items():
                missed += number - self._words[slot]
                self._words[slot] = number
                if slot == self._own_slot:
                    self._own_in_flight = deque(one for one in self._own_in_flight if one > number)
            return Gap(GapReason.OVERDUE, missed) if missed else None


def _behind(before: tuple[bytes, bytes], handled: bytearray) -> dict[int, int]:
    """By slot, the number that it had then, where nothing has come since and this process is behind it."""
    published, then, now = (memoryview(one).cast("Q") for one in (*before, handled))
    return {
        slot: number
        for slot, (number, had, has) in enumerate(zip(published, then, now, strict=True))
        if has == had and has < number
    }
