# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The message types that a connection's context has a handler for, each wanted by `register` or by pending calls."""

from __future__ import annotations

from collections import Counter

from msgd.messaging import Handler, Messaging


class Subscriptions:
    """Registers `handler` for a type while at least one party wants it."""

    def __init__(self, messaging: Messaging, handler: Handler) -> None:
        self._messaging = messaging
        self._handler = handler
        self._wanted: Counter[int] = Counter()

    def add(self, message_type: int) -> None:
        """One more party wants the type."""
        self._wanted[message_type] += 1
        if self._wanted[message_type] == 1:
            self._messaging.register(message_type, self._handler)

    def remove(self, message_type: int) -> None:
        """One party less wants the type."""
        self._wanted[message_type] -= 1
        if not self._wanted[message_type]:
            del self._wanted[message_type]
            self._messaging.deregister(message_type, self._handler)
