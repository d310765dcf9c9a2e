# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Which subscriptions want a topic, and how an event finds its way through all of them.

A pattern is a topic with `*`, which stands for any characters, or `?`, which stands for one.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Protocol

from msgd.events import HANDLER_FAILED, fields
from msgd.pubsub.events import Event
from msgd.wire.pubsub import Ack, Outcome, check_pattern

_REMEMBERED = 1024
"""Topics whose subscriptions are remembered; the table is emptied when it is full."""


class Sink(Protocol):
    """A subscription, as the hub sees it."""

    @property
    def topic(self) -> str:
        """The topic or the pattern."""

    def deliver(self, event: Event, receipt: Receipt) -> None:
        """Take an event, in the thread that dispatches: have the callback run, now or later, and tell the receipt."""


class Receipt:
    """Counts the callbacks that have an event, and calls `answer` when all have returned.  Any thread may tell it.

    It begins with one that is open, for the hub, which closes it when it has given the event to all.
    """

    def __init__(self, answer: Callable[[Ack], None]) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self._open = 1
        self._callbacks = 0
        self._failure: Ack | None = None

    def add(self) -> None:
        """One more subscription has the event."""
        with self._lock:
            self._open += 1

    def ran(self, error: BaseException | None = None) -> None:
        """A callback has returned, or raised."""
        failed = None if error is None else Ack(Outcome.FAILED, 0, f"{type(error).__name__}: {error}")
        self._settle(1, failed)

    def dropped(self, why: str) -> None:
        """A subscription could not take the event."""
        self._settle(0, Ack(Outcome.DROPPED, 0, why))

    def close(self) -> None:
        """The hub has given the event to all."""
        self._settle(0, None)

    def _settle(self, callbacks: int, failure: Ack | None) -> None:
        with self._lock:
            self._open -= 1
            self._callbacks += callbacks
            self._failure = self._failure or failure
            is_last = not self._open
        if is_last:
            outcome = self._failure or Ack(Outcome.HANDLED, 0)
            self._answer(outcome._replace(callbacks=self._callbacks))


class _NobodyAsks(Receipt):
    """The receipt of an event that nobody wants to have acknowledged."""

    def add(self) -> None:
        """Count nothing."""

    def ran(self, error: BaseException | None = None) -> None:
        """Count nothing."""

    def dropped(self, why: str) -> None:
        """Count nothing."""

    def close(self) -> None:
        """Count nothing."""


NOBODY_ASKS = _NobodyAsks(lambda ack: None)


class Subscriptions:
    """The subscriptions of a process in a directory.  Changes replace tuples; a delivery that is running goes on."""

    def __init__(self) -> None:
        self._all: tuple[tuple[Sink, re.Pattern[str] | None], ...] = ()
        self._remembered: dict[str, tuple[Sink, ...]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._all)

    def add(self, sink: Sink) -> None:
        """Add a subscription behind the others."""
        with self._lock:
            self._all = (*self._all, (sink, matcher(sink.topic)))
            self._remembered = {}

    def remove(self, sink: Sink) -> None:
        """Take a subscription out; one that is not there does no harm."""
        with self._lock:
            self._all = tuple(one for one in self._all if one[0] is not sink)
            self._remembered = {}

    def all(self) -> tuple[Sink, ...]:
        """All of them, in their order."""
        return tuple(sink for sink, _ in self._all)

    def topics(self) -> list[str]:
        """Their topics and patterns, each once, in order."""
        return sorted({sink.topic for sink, _ in self._all})

    def wanting(self, topic: str) -> tuple[Sink, ...]:
        """Those that want the topic, in their order."""
        remembered = self._remembered
        found = remembered.get(topic)
        if found is None:
            found = tuple(
                sink for sink, pattern in self._all if (pattern.fullmatch(topic) if pattern else sink.topic == topic)
            )
            if len(remembered) >= _REMEMBERED:
                remembered.clear()
            remembered[topic] = found
        return found


def matcher(topic: str) -> re.Pattern[str] | None:
    """What a pattern matches; None for a topic.  TypeError and ValueError for what is neither."""
    if not check_pattern(topic):
        return None
    pieces = {"*": ".*", "?": "."}
    return re.compile("".join(pieces.get(one) or re.escape(one) for one in re.sub(r"\*+", "*", topic)), re.DOTALL)


def check_function(what: str, function: object) -> None:
    """TypeError for what cannot be called."""
    if not callable(function):
        raise TypeError(f"{what} is a function, not {type(function).__name__}")


def check_callbacks(callback: object, on_gap: object) -> None:
    """The same for the functions of a subscription; there may be no `on_gap`."""
    check_function("a callback", callback)
    if on_gap is not None:
        check_function("on_gap", on_gap)


def failure_fields(event: Event) -> dict[str, str]:
    """The journal's fields for a callback that has raised."""
    return fields(HANDLER_FAILED, PEER_PID=event.src.pid, TOPIC=event.topic)
