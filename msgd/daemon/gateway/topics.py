# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The topics of one client: what it publishes, and what it is told of (msgd.pubsub).

Rule 1.  The connection process is the subscriber.  It is told of gaps as every other is, and tells the client.
Rule 2.  A client that does not read its backlog is told nothing more meanwhile, and the connection process takes
nothing in for it; so publishers find its queue full, and the client hears of a gap once it goes on.
Rule 3.  The hub is opened by the first request that needs it, and closed with the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgd.config import Config
from msgd.daemon.loop import NEVER, Loop
from msgd.errors import QueueFull
from msgd.pubsub.events import Event, Gap
from msgd.pubsub.face import CHECK_INTERVAL, BaseFace
from msgd.pubsub.hub import Hub
from msgd.pubsub.subscriptions import Receipt
from msgd.wire.gateway.limits import MAX_TYPES
from msgd.wire.gateway.replies import error_code, write_gap, write_publication
from msgd.wire.pubsub import Data


class _Told:
    """One topic or pattern that the client is told of."""

    def __init__(self, topic: str, tell: Callable[[str, Event], None]) -> None:
        self.topic = topic
        self._tell = tell

    def deliver(self, event: Event, receipt: Receipt) -> None:
        """Tell the client."""
        self._tell(self.topic, event)
        receipt.ran()

    def miss(self, gap: Gap) -> bool:
        """The client is told once, by Topics."""
        return True


class Topics(BaseFace):
    """Publishes for a client and tells it of publications; `say` takes a line, `no_memory` the length of a topic's."""

    def __init__(
        self, config: Config, loop: Loop, say: Callable[[bytes], None], no_memory: Callable[[int], None]
    ) -> None:
        super().__init__(config, None)
        self._loop = loop
        self._say = say
        self._no_memory = no_memory
        self._told: dict[str, _Told] = {}
        self._ticks = loop.call_every(NEVER, self._tick)

    def __len__(self) -> int:
        return len(self._told)

    def _begin(self, hub: Hub) -> None:
        """The connection's own loop dispatches."""

    def publish(self, topic: str, data: Data) -> Mapping[str, object]:
        """Publish.  Returns the members of the answer; raises MessageTooLarge, TransportError."""
        hub = self._open()
        publication = hub.publish((hub.pack(topic, data),), include_self=True)
        failures = {str(pid): error_code(error) for pid, error in publication.failures.items()}
        return {"delivered": publication.delivered, "failures": failures}

    def subscribe(self, topics: tuple[str, ...]) -> Mapping[str, object]:
        """Tell the client of these from now on.  Raises QueueFull, TransportError."""
        new = {topic: _Told(topic, self._tell) for topic in topics if topic not in self._told}
        if len(self._told) + len(new) > MAX_TYPES:
            raise QueueFull(f"a client may subscribe to {MAX_TYPES} topics at most")
        for topic, told in new.items():
            self._add(told)
            self._told[topic] = told
        self._ticks.restart(CHECK_INTERVAL)
        return {}

    def unsubscribe(self, topics: tuple[str, ...]) -> Mapping[str, object]:
        """Tell the client no longer of these."""
        for topic in topics:
            if (told := self._told.pop(topic, None)) is not None:
                self._remove(told)
        if not self._told:
            self._ticks.restart(NEVER)
        return {}

    def close(self) -> None:
        """Tell nothing more."""
        self._ticks.cancel()
        self._told.clear()
        self._close(0)

    def miss(self, gap: Gap) -> None:
        """Tell the client that it may have missed something."""
        self._say(write_gap(gap.reason.name.lower(), gap.missed, str(gap)))

    def _tell(self, pattern: str, event: Event) -> None:
        try:
            self._say(write_publication(pattern, event.topic, str(event.src), event.data))
        except MemoryError:
            self._no_memory(len(event.topic))

    def _tick(self) -> None:
        if self._hub is not None:
            self._hub.tick()
