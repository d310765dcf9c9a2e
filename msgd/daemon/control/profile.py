# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Profiling of a process's messages: how many of each type came and went, and how long their handlers took.

It is an observer of the endpoint while it is on.  An observer that was there before (the metrics) goes on to see
everything: this one hands it on.  While it is off, it costs nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from msgd.messaging import Messaging, Observer
from msgd.wire.control import ProfileLevel, ProfileMode
from msgd.wire.header import Message
from msgd.wire.message_types import type_name

_MOST_TYPES = 64


class Profile(Observer):
    """What a process counts, from set(ON) or set(COUNT) to set(OFF)."""

    def __init__(self, messaging: Messaging) -> None:
        self._messaging = messaging
        self._next: Observer | None = None
        self._flush()
        self.level = ProfileLevel.OFF

    def set(self, mode: ProfileMode) -> None:
        """Do what a PROFILE message says.  What has been counted stays until FLUSH, also while it is off."""
        if mode is ProfileMode.FLUSH:
            self._flush()
            return
        was_on = self.level is not ProfileLevel.OFF
        if mode is ProfileMode.OFF:
            self.level = ProfileLevel.OFF
            if was_on:
                self._messaging.observe(self._next)
            return
        self.level = ProfileLevel.COUNT_AND_TIME if mode is ProfileMode.ON else ProfileLevel.COUNT
        if not was_on:
            self._next = self._messaging.observe(self)

    def report(self) -> str:
        """The counts as lines; empty if nothing has been counted."""
        types = [one for one, _ in (self._received + self._sent).most_common(_MOST_TYPES)]
        if not types:
            return ""
        lines = [f"messages of the most frequent types (profiling: {self.level.name.lower().replace('_', ' ')})"]
        for one in types:
            seconds = self._seconds.get(one, 0.0)
            timed = f", {seconds * 1000:.3f} ms in handlers" if seconds else ""
            lines.append(f"    {type_name(one):<30} {self._received[one]:6} received {self._sent[one]:6} sent{timed}")
        return "\n".join(lines) + "\n"

    def _flush(self) -> None:
        self._received: Counter[int] = Counter()
        self._sent: Counter[int] = Counter()
        self._seconds: defaultdict[int, float] = defaultdict(float)

    # What the endpoint reports

    def sent(self, message_type: int, length: int) -> None:
        self._sent[message_type] += 1
        if self._next is not None:
            self._next.sent(message_type, length)

    def received(self, message: Message) -> None:
        self._received[message.type] += 1
        if self._next is not None:
            self._next.received(message)

    def handled(self, message: Message, seconds: float) -> None:
        if self.level is ProfileLevel.COUNT_AND_TIME:
            self._seconds[message.type] += seconds
        if self._next is not None:
            self._next.handled(message, seconds)

    def dropped(self, reason: str, number: int) -> None:
        if self._next is not None:
            self._next.dropped(reason, number)

    def dispatched(self) -> None:
        if self._next is not None:
            self._next.dispatched()
