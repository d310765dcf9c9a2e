# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""PubSub for asyncio: the same words as msgd.pubsub.PubSub, with callbacks in the event loop and `async for`.

The loop dispatches; there is no thread.  A process that has both kinds of PubSub in a directory has one hub for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar, overload

from msgd.aio.context import AsyncMessaging
from msgd.aio.queues import Events, Queue, Subscription
from msgd.config import Config
from msgd.errors import ContextClosed, MsgdError, NoSuchProcess, QueueFull, TransportError
from msgd.messaging.requests import PendingRequest
from msgd.pubsub.acked import ACK_TIMEOUT, collected
from msgd.pubsub.events import Callback, Gap, GapReason, OnGap, Publication
from msgd.pubsub.face import CHECK_INTERVAL, BaseFace, warn
from msgd.pubsub.hub import Hub
from msgd.pubsub.parcel import Parcel, pack_parcel
from msgd.pubsub.subscriptions import check_callbacks
from msgd.wire.message_types import MessageClass
from msgd.wire.pubsub import ACK, ASK, PUBLISH, TOPICS, Data, unpack_topics
from msgd.wire.server_id import ServerID

QUEUE_MAX = 1000
"""Events that wait in one subscription before it misses some."""

C = TypeVar("C", bound=Callback)


class PubSub(BaseFace):
    """Topics for the processes that meet in a directory; an async context manager, which opens and closes it.

    The arguments are those of msgd.pubsub.PubSub.  Every call is made from the thread of its loop.  In a forked child
    there is no loop: make another one.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | Config | None = None,
        *,
        name: str | None = None,
        check_interval: float = CHECK_INTERVAL,
    ) -> None:
        super().__init__(directory, name)
        self._interval = check_interval
        self._messaging: AsyncMessaging | None = None
        self._subscriptions: list[Subscription] = []
        self._watchers: tuple[Queue, ...] = ()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        if self._messaging is not None or self._is_closed:
            raise ContextClosed("a PubSub is entered once; make another one")
        self._loop = asyncio.get_running_loop()
        hub = super()._open()
        try:
            self._messaging = await AsyncMessaging(hub.config, listens=MessageClass(0)).__aenter__()
        except BaseException:
            self._close(0)
            raise
        self._timer = self._loop.call_later(self._interval, self._tick)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self) -> Hub:
        if self._hub is None:
            raise ContextClosed("this PubSub is not open: use it inside `async with`")
        return self._hub

    def reopen(self) -> None:
        """A forked child has no loop: it makes another PubSub."""

    def _begin(self, hub: Hub) -> None:
        """The driver of __aenter__() dispatches."""

    def _tick(self) -> None:
        if self._hub is None:
            return
        try:
            self._hub.tick()
        except MsgdError as error:
            self._loop.call_exception_handler({"message": f"looking for publications: {error}", "exception": error})
        self._timer = self._loop.call_later(self._interval, self._tick)

    # Publishing

    async def publish(
        self,
        topic: str,
        data: Data = b"",
        *,
        wait: Literal["acked"] | None = None,
        timeout: float | None = ACK_TIMEOUT,
        include_self: bool = True,
    ) -> Publication:
        """As PubSub.publish, without blocking the loop.

        With wait="acked" in a callback, two processes may wait for each other until the timeout; start a task instead.
        """
        hub = self._open()
        parcel = pack_parcel(topic, data, hub.config.max_message_size)
        if wait is None:
            return hub.publish((parcel,), include_self=include_self)
        if wait != "acked":
            raise ValueError(f"wait={wait!r}: it is None or 'acked'")
        return await self._publish_acked(hub, parcel, include_self, timeout)

    async def _publish_acked(self, hub: Hub, parcel: Parcel, include_self: bool, timeout: float | None) -> Publication:
        assert self._messaging is not None
        deadline = None if timeout is None else self._loop.time() + timeout
        asked: list[PendingRequest] = []
        failures: dict[ServerID, MsgdError] = {}
        elsewhere: list[ServerID] = []
        nodes: dict[int, MsgdError] = {}
        has_news = asyncio.Event()

        def note() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
                self._loop.call_soon_threadsafe(has_news.set)

        with contextlib.ExitStack() as in_flight:
            in_flight.enter_context(self._messaging._driver.urgent())
            if hub.others is not None:
                with hub.others.rolls(note) as rolls:
                    latest = self._loop.time() + hub.others.roll_timeout
                    await _settled(rolls, has_news, latest if deadline is None else min(deadline, latest))
                    elsewhere, nodes = hub.others.take_rolls(rolls)
            with hub.numbered(parcel, elsewhere, include_self=include_self) as (frame, subscribers):
                for dst in subscribers:
                    try:
                        request = in_flight.enter_context(hub.messaging.begin_request(dst, PUBLISH, frame, ACK, note))
                        is_here = hub.messaging._endpoint.presence.is_here(dst)
                        in_flight.enter_context(self._messaging._ends.watching(hub.messaging, request, keep=is_here))
                        asked.append(request)
                    except (NoSuchProcess, QueueFull, TransportError) as error:
                        failures[dst] = error
            await _settled(asked, has_news, deadline)
            return collected(hub, asked, failures, nodes, timeout)

    async def publish_many(self, publications: Iterable[tuple[str, Data]], *, include_self: bool = True) -> Publication:
        """As PubSub.publish_many."""
        hub = self._open()
        parcels = [pack_parcel(topic, data, hub.config.max_message_size) for topic, data in publications]
        return hub.publish(parcels, include_self=include_self) if parcels else Publication(0)

    # Subscribing

    @overload
    def subscribe(
        self, topic: str, callback: Callback, *, on_gap: OnGap | None = None, maxsize: int = QUEUE_MAX
    ) -> Subscription: ...
    @overload
    def subscribe(self, topic: str, *, on_gap: OnGap | None = None, maxsize: int = QUEUE_MAX) -> Callable[[C], C]: ...
    def subscribe(
        self,
        topic: str,
        callback: Callback | None = None,
        *,
        on_gap: OnGap | None = None,
        maxsize: int = QUEUE_MAX,
    ) -> Subscription | Callable[[C], C]:
        """As PubSub.subscribe; `callback` and `on_gap` are plain or `async def` functions and run in the loop.

        One event at a time, in order.  When `maxsize` events wait, further ones are dropped, which is a gap.
        """
        if callback is None:

            def decorate(function: C) -> C:
                self.subscribe(topic, function, on_gap=on_gap, maxsize=maxsize)
                return function

            return decorate
        check_callbacks(callback, on_gap)
        return self._subscribed(self._queue((topic,), on_gap, maxsize), callback)

    def _queue(self, topics: tuple[str, ...], on_gap: OnGap | None, maxsize: int) -> Queue:
        self._open()
        queue = Queue(topics, on_gap, maxsize, self._miss_in)
        try:
            for sink in queue.sinks:
                self._add(sink)
        except BaseException:
            self._give_up(queue)
            raise
        return queue

    def _subscribed(self, queue: Queue, callback: Callback | None) -> Subscription:
        subscription = Subscription(queue, callback, self._give_up)
        self._subscriptions.append(subscription)
        subscription.task.add_done_callback(lambda _: self._subscriptions.remove(subscription))
        return subscription

    def _give_up(self, queue: Queue) -> None:
        for sink in queue.sinks:
            self._remove(sink)
        self._watchers = tuple(one for one in self._watchers if one is not queue)
        queue.close()

    @contextlib.asynccontextmanager
    async def events(
        self, *topics: str, on_gap: OnGap | None = None, maxsize: int = QUEUE_MAX
    ) -> AsyncIterator[Events]:
        """The events of these topics and patterns: `async with p.events("a.*") as events: async for event in events`.

        An event counts as handled when the next one is asked for.
        """
        queue = self._queue(topics, on_gap, maxsize)
        events = Events(queue)
        try:
            yield events
        finally:
            events.finish()
            self._give_up(queue)

    def on_gap(self, callback: OnGap) -> OnGap:
        """As PubSub.on_gap; a plain or an `async def` function, which runs in the loop."""
        queue = self._queue((), callback, QUEUE_MAX)
        self._watchers = (*self._watchers, queue)
        self._subscribed(queue, None)
        return callback

    def miss(self, gap: Gap) -> None:
        """Something may have been missed; see BaseFace.miss."""
        heard = [queue.miss(gap) for queue in self._watchers] + [sink.miss(gap) for sink in self._sinks]
        if self._sinks and not any(heard):
            warn(gap)

    def _miss_in(self, queue: Queue) -> None:
        """The queue had no room for an event."""
        gap = Gap(GapReason.SLOW)
        heard = [one.miss(gap) for one in (queue, *self._watchers)]
        if not any(heard):
            warn(gap)

    # What there is

    def generation(self) -> int:
        """As PubSub.generation."""
        return self._open().progress.table.generation()

    def is_current(self) -> bool:
        """Whether all that has been published until now is in the queues of this process, or has been handled."""
        return self._open().progress.is_current()

    async def topics(self, timeout: float | None = ACK_TIMEOUT) -> dict[int, list[str]]:
        """As PubSub.topics."""
        hub = self._open()
        assert self._messaging is not None
        survey = await self._messaging.survey(ASK, b"", TOPICS, timeout)
        found = {pid: unpack_topics(answer.data) for pid, answer in survey.answers.items()}
        if len(hub.subscriptions):
            found[hub.messaging.server_id.pid] = hub.subscriptions.topics()
        return dict(sorted(found.items()))

    # The end

    async def aclose(self, timeout: float | None = None) -> int:
        """As PubSub.close; it waits at most `timeout` seconds (`msgd:close timeout`) for callbacks and queues, too."""
        messaging, self._messaging = self._messaging, None
        if self._timer is not None:
            self._timer.cancel()
        if messaging is None:
            self._is_closed = True
            return 0
        seconds = messaging.messaging.config.close_timeout if timeout is None else timeout
        tasks = [one.task for one in self._subscriptions if one.task is not asyncio.current_task()]
        try:
            for subscription in tuple(self._subscriptions):
                subscription.close()
            if tasks:
                await asyncio.wait(tasks, timeout=seconds)
        finally:
            for task in tasks:
                task.cancel()
            undelivered = await messaging.aclose(seconds)
            undelivered += self._close(0)
        return undelivered


async def _settled(requests: Sequence[PendingRequest], has_news: asyncio.Event, deadline: float | None) -> None:
    """Wait until all are settled, or until the deadline on the loop's clock."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            while not all(request.is_settled for request in requests):
                has_news.clear()
                await has_news.wait()
