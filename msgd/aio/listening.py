# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The subscriptions of a client of the gateway in asyncio, and the end of their connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from msgd.aio.queues import Events, Queue
from msgd.client.answers import event_of, gap_of
from msgd.pubsub.events import Event, Gap, GapReason
from msgd.pubsub.face import warn
from msgd.pubsub.subscriptions import NOBODY_ASKS
from msgd.wire.gateway.conversation import Conversation
from msgd.wire.gateway.replies import Missed, Published


class Listening:
    """The queues of all subscriptions.  Nothing is silent: one that is too slow, and the end, are gaps."""

    def __init__(self) -> None:
        self.queues: tuple[Queue, ...] = ()

    def add(self, queue: Queue) -> None:
        """Give a queue what its topics have from now on."""
        self.queues = (*self.queues, queue)

    def remove(self, queue: Queue) -> list[str]:
        """Give it nothing more.  Returns which of its topics nobody else wants."""
        self.queues = tuple(one for one in self.queues if one is not queue)
        queue.close()
        wanted = {sink.topic for one in self.queues for sink in one.sinks}
        return [sink.topic for sink in queue.sinks if sink.topic not in wanted]

    def to(self, topics: Collection[str]) -> list[Queue]:
        """The queues that are for these topics alone."""
        return [queue for queue in self.queues if all(sink.topic in topics for sink in queue.sinks)]

    def tell(self, news: deque[Published | Missed]) -> None:
        """Distribute what has come."""
        while news:
            one = news.popleft()
            if isinstance(one, Missed):
                self._miss(gap_of(one))
                continue
            event = event_of(one)
            for queue in self.queues:
                for sink in queue.sinks:
                    if sink.topic == one.pattern:
                        sink.deliver(event, NOBODY_ASKS)

    def end(self) -> None:
        """The connection has ended: nothing comes any more.  What waits is still there to be taken."""
        if self.queues:
            self._miss(Gap(GapReason.ENDED))
        for queue in self.queues:
            queue.finish()

    def _miss(self, gap: Gap) -> None:
        heard = [queue.miss(gap) for queue in self.queues]
        if heard and not any(heard):
            warn(gap)


def too_slow(queue: Queue) -> None:
    """A queue has had no room for an event."""
    gap = Gap(GapReason.SLOW)
    if not queue.miss(gap):
        warn(gap)


class ClientEvents(Events):
    """Events to iterate over.  When the connection has ended, and no event waits any more, it raises why."""

    def __init__(self, queue: Queue, conversation: Conversation) -> None:
        super().__init__(queue)
        self._conversation = conversation

    async def __anext__(self) -> Event:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            if self._conversation.ended is not None:
                raise self._conversation.ended from None
            raise
