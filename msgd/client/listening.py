# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The callbacks of a client, by the topic or pattern that each is for."""

from __future__ import annotations

import logging

from msgd.client.answers import event_of, gap_of
from msgd.pubsub.events import Callback, Event, Gap, OnGap
from msgd.pubsub.face import call_on_gap, warn
from msgd.pubsub.subscriptions import failure_fields
from msgd.wire.gateway.replies import Missed, Published

logger = logging.getLogger("msgd")


class Listening:
    """Which callbacks there are, and who calls them."""

    def __init__(self) -> None:
        self._callbacks: dict[str, tuple[Callback, ...]] = {}
        self._on_gap: dict[str, tuple[OnGap, ...]] = {}

    def add(self, topic: str, callback: Callback, on_gap: OnGap | None) -> None:
        """Call back for this topic or pattern from now on."""
        self._callbacks[topic] = (*self._callbacks.get(topic, ()), callback)
        if on_gap is not None:
            self._on_gap[topic] = (*self._on_gap.get(topic, ()), on_gap)

    def remove(self, topic: str) -> None:
        """Call nobody back for it any more."""
        self._callbacks.pop(topic, None)
        self._on_gap.pop(topic, None)

    def tell(self, news: Published | Missed) -> None:
        """Call those whom it concerns.  What they raise is logged."""
        if isinstance(news, Missed):
            self._miss(gap_of(news))
            return
        event = event_of(news)
        for callback in self._callbacks.get(news.pattern, ()):
            _call(callback, event)

    def _miss(self, gap: Gap) -> None:
        wanting = [on_gap for of_topic in self._on_gap.values() for on_gap in of_topic]
        for on_gap in dict.fromkeys(wanting):
            call_on_gap(on_gap, gap)
        if self._callbacks and not wanting:
            warn(gap)


def _call(callback: Callback, event: Event) -> None:
    try:
        callback(event)
    except Exception:
        logger.exception("a callback for %s", event.topic, extra=failure_fields(event))
