# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the daemon's processes count of their messages, for the metrics."""

from __future__ import annotations

import bisect

from msgd.config import Config
from msgd.daemon.metrics.counters import Counters
from msgd.messaging import Messaging, Observer
from msgd.wire.header import Message
from msgd.wire.message_types import class_names, message_class

BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Upper bounds of the histogram of handler times, in seconds; a last bucket takes the rest."""

MESSAGES, BYTES, DROPS = "messages ", "bytes ", "drops "
"""Prefixes of counter names; `in CLASS` or `out CLASS` follows, or a reason."""

BUCKET, NANOSECONDS = "handler bucket ", "handler nanoseconds"
HANDLER_ERRORS = "handler errors"
NODE = "node "
"""Prefix of counter names; `in NUMBER` or `out NUMBER` follows."""

QUEUED_MESSAGES, QUEUED_BYTES, BLOCKED = "queued messages", "queued bytes", "blocked destinations"
GAUGES = (QUEUED_MESSAGES, QUEUED_BYTES, BLOCKED)
"""Counters that hold a current value, not a total."""


class Meter(Observer):
    """Counts into `counters`: messages and bytes by class, the time in handlers, drops, queues.

    A message that nobody handles counts as a drop, and not as received.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._messaging: Messaging | None = None

    def attach(self, messaging: Messaging) -> None:
        """Read the queues of this context from now on."""
        self._messaging = messaging

    def sent(self, message_type: int, length: int) -> None:
        self._count("out", message_type, length)
        self.dispatched()

    def received(self, message: Message) -> None:
        self._count("in", message.type, len(message.data))

    def handled(self, message: Message, seconds: float) -> None:
        self._counters.add(NANOSECONDS, int(seconds * 1e9))
        self._counters.add(f"{BUCKET}{bisect.bisect_left(BUCKETS, seconds)}")

    def dropped(self, reason: str, number: int) -> None:
        self._counters.add(DROPS + reason, number)

    def dispatched(self) -> None:
        if self._messaging is not None:
            counters, statistics = self._counters, self._messaging.statistics()
            counters.set(QUEUED_MESSAGES, statistics.queued_messages)
            counters.set(QUEUED_BYTES, statistics.queued_bytes)
            counters.set(BLOCKED, statistics.blocked_destinations)
            counters.set(HANDLER_ERRORS, statistics.handler_errors)
            for number, traffic in statistics.nodes.items():
                counters.set(f"{NODE}out {number}", traffic.sent)
                counters.set(f"{NODE}in {number}", traffic.received)

    def _count(self, direction: str, message_type: int, length: int) -> None:
        name = f"{direction} {class_names(message_class(message_type)).lower()}"
        self._counters.add(MESSAGES + name)
        self._counters.add(BYTES + name, length)


def open_messaging(config: Config, counters: Counters | None) -> Messaging:
    """A messaging context, metered if there are counters."""
    if counters is None:
        return Messaging(config)
    meter = Meter(counters)
    messaging = Messaging(config, observer=meter)
    meter.attach(messaging)
    return messaging
