# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A messaging context that counts its messages, for the metrics."""

from __future__ import annotations

import bisect
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from msgd.config import Config
from msgd.daemon.metrics.counters import Counters
from msgd.messaging import Destination, Handler, Messaging
from msgd.results import SendStatus
from msgd.wire.header import Message
from msgd.wire.message_types import class_names, message_class

BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Upper bounds of the histogram of handler times, in seconds; a last bucket takes the rest."""

MESSAGES, BYTES, DROPS = "messages ", "bytes ", "drops "
"""Prefixes of counter names; `in CLASS` or `out CLASS` follows, or a reason."""

BUCKET, NANOSECONDS = "handler bucket ", "handler nanoseconds"
HANDLER_ERRORS = "handler errors"
QUEUED_MESSAGES, QUEUED_BYTES, BLOCKED = "queued messages", "queued bytes", "blocked destinations"
GAUGES = (QUEUED_MESSAGES, QUEUED_BYTES, BLOCKED)
"""Counters that hold a current value, not a total."""


class MeteredMessaging(Messaging):
    """A context that counts into `counters`: messages and bytes by class, the time in handlers, drops, queues.

    A message without a handler counts as a drop, not as received.  A message with handlers counts once:
    _count_received() is registered before the first handler.
    """

    def __init__(self, config: Config, counters: Counters) -> None:
        self._counters = counters
        super().__init__(config)
        self.handlers.defaults = {
            message_type: (self._count_received, *(_Metered(handler, counters) for handler in handlers))
            for message_type, handlers in self.handlers.defaults.items()
        }

    def register(self, message_type: int, handler: Handler) -> None:
        if message_type not in self.handlers.registered:
            super().register(message_type, self._count_received)
        super().register(message_type, _Metered(handler, self._counters))

    def deregister(self, message_type: int, handler: Handler | None = None) -> None:
        super().deregister(message_type, None if handler is None else _Metered(handler, self._counters))
        if self.handlers.registered.get(message_type) == (self._count_received,):
            super().deregister(message_type)

    def _count_received(self, message: Message) -> None:
        _count(self._counters, "in", message.type, message.data)

    def send(
        self,
        dst: Destination,
        message_type: int,
        data: bytes = b"",
        *,
        fds: Collection[int] = (),
        duplicates_allowed: bool = True,
        timeout: float | None = None,
    ) -> SendStatus:
        status = super().send(dst, message_type, data, fds=fds, duplicates_allowed=duplicates_allowed, timeout=timeout)
        _count(self._counters, "out", message_type, data)
        self._note_queues()
        return status

    def dispatch(self, timeout: float | None = 0) -> int:
        handled = super().dispatch(timeout)
        self._note_queues()
        return handled

    def _note_queues(self) -> None:
        counters, statistics = self._counters, self.statistics()
        counters.set(QUEUED_MESSAGES, statistics.queued_messages)
        counters.set(QUEUED_BYTES, statistics.queued_bytes)
        counters.set(BLOCKED, statistics.blocked_destinations)
        counters.set(HANDLER_ERRORS, statistics.handler_errors)
        for reason, number in statistics.drops.items():
            counters.set(DROPS + reason, number)


def open_messaging(config: Config, counters: Counters | None) -> Messaging:
    """A messaging context, metered if there are counters."""
    return Messaging(config) if counters is None else MeteredMessaging(config, counters)


@dataclass
class _Metered:
    """A handler with its time measured; equal for equal handlers, so that it can be deregistered."""

    handler: Handler
    counters: Counters = field(compare=False)

    def __call__(self, message: Message) -> None:
        began = time.perf_counter_ns()
        try:
            self.handler(message)
        finally:
            took = time.perf_counter_ns() - began
            self.counters.add(NANOSECONDS, took)
            self.counters.add(f"{BUCKET}{bisect.bisect_left(BUCKETS, took / 1e9)}")


def _count(counters: Counters, direction: str, message_type: int, data: bytes) -> None:
    name = f"{direction} {class_names(message_class(message_type)).lower()}"
    counters.add(MESSAGES + name)
    counters.add(BYTES + name, len(data))
