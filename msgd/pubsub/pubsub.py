# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""PubSub: publish to topics, and subscribe to them, in programs without an event loop of their own.

Callbacks run in a background thread, one after the other, or in dispatch() where the program has said background=False
or the messaging type is tdb, which needs the main thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Literal, Self, TypeVar, overload

from msgd.config import Config
from msgd.errors import AlreadyDispatching
from msgd.messaging.border import refusals_documented
from msgd.pubsub.acked import ACK_TIMEOUT, publish_acked
from msgd.pubsub.events import Callback, Event, Gap, OnGap, Publication
from msgd.pubsub.face import CHECK_INTERVAL, BaseFace, call_on_gap
from msgd.pubsub.hub import Hub
from msgd.pubsub.parcel import pack_parcel
from msgd.pubsub.subscriptions import Receipt, check_callbacks, failure_fields, matcher
from msgd.wire.pubsub import ASK, TOPICS, Data, unpack_topics

logger = logging.getLogger("msgd")

C = TypeVar("C", bound=Callback)


class Subscription:
    """One callback for a topic or a pattern; close() ends it, and so does leaving it as a context manager."""

    def __init__(self, pubsub: PubSub, topic: str, callback: Callback, on_gap: OnGap | None) -> None:
        matcher(topic)
        check_callbacks(callback, on_gap)
        self.topic = topic
        self.callback = callback
        self._on_gap = on_gap
        self._pubsub = pubsub

    def deliver(self, event: Event, receipt: Receipt) -> None:
        """Run the callback."""
        error: BaseException | None = None
        try:
            self.callback(event)
        except Exception as raised:
            error = raised
            logger.exception("a callback for %s", event.topic, extra=failure_fields(event))
        except BaseException as raised:
            error = raised
            raise
        finally:
            receipt.ran(error)

    def miss(self, gap: Gap) -> bool:
        """Tell whoever wants to know of gaps of this subscription."""
        if self._on_gap is not None:
            call_on_gap(self._on_gap, gap)
        return self._on_gap is not None

    def close(self) -> None:
        """Call the callback no more.  A second call does nothing."""
        self._pubsub._remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class PubSub(BaseFace):
    """Topics for the processes that meet in a directory.

    `directory`: a path, or a Config; by default that in MSGD_DIRECTORY, or a private one of this user, which `name`
    tells apart from others.  All processes that are to meet name the same.  `background`: whether threads dispatch
    (None: yes, except with the messaging type tdb); otherwise the program calls dispatch().  `check_interval`: seconds
    between two looks for what has been published and has not come.

    Any thread may call anything.  A context manager; leaving it closes it.  It is opened by its first use, also in a
    forked child, and raises then what Messaging raises.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | Config | None = None,
        *,
        name: str | None = None,
        background: bool | None = None,
        check_interval: float = CHECK_INTERVAL,
    ) -> None:
        super().__init__(directory, name)
        self._wants_background = background
        self._interval = check_interval
        self._next_tick = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a PubSub cannot be pickled or copied; make it in a module that the other process imports")

    def start(self) -> Self:
        """Open it now: what is published from here on is heard by the callbacks that are subscribed.

        For a forked child that otherwise only listens.  Does nothing if it is open.
        """
        self._open()
        return self

    @refusals_documented
    def _begin(self, hub: Hub) -> None:
        wanted = self._wants_background
        if wanted is None:
            wanted = not hub.messaging._endpoint.backend.needs_main_thread
        if wanted:
            hub.start(self._interval)

    # Publishing

    @refusals_documented
    def publish(
        self,
        topic: str,
        data: Data = b"",
        *,
        wait: Literal["acked"] | None = None,
        timeout: float | None = ACK_TIMEOUT,
        include_self: bool = True,
    ) -> Publication:
        """Publish to every process that subscribes to the topic; its own, too, unless `include_self` is false.

        `data` is bytes, text, or what JSON can say, and arrives as what it is.  Returns at once, with the processes
        that took it and why others did not.  With wait="acked" it returns when the callbacks of every living
        subscriber have returned, and says who has not: after `timeout` seconds (None: for ever) at the latest.

        Raises MessageTooLarge, TransportError, ContextClosed; ValueError and TypeError for what cannot be published;
        AlreadyDispatching if wait="acked" is asked for inside a callback: two processes would wait for each other.
        """
        hub = self._open()
        parcel = pack_parcel(topic, data, hub.config.max_message_size)
        if wait is None:
            return hub.publish((parcel,), include_self=include_self)
        if wait != "acked":
            raise ValueError(f"wait={wait!r}: it is None or 'acked'")
        if hub.runs_callbacks_here:
            raise AlreadyDispatching(
                "a callback cannot wait for acknowledgements, since others may wait for its own; publish without wait,"
                " or from another thread"
            )
        return publish_acked(hub, parcel, include_self=include_self, timeout=timeout)

    @refusals_documented
    def publish_many(self, publications: Iterable[tuple[str, Data]], *, include_self: bool = True) -> Publication:
        """Publish several, in this order; each process is woken up once.  `delivered`: processes that took all."""
        hub = self._open()
        parcels = [pack_parcel(topic, data, hub.config.max_message_size) for topic, data in publications]
        return hub.publish(parcels, include_self=include_self) if parcels else Publication(0)

    # Subscribing

    @overload
    def subscribe(self, topic: str, callback: Callback, *, on_gap: OnGap | None = None) -> Subscription: ...
    @overload
    def subscribe(self, topic: str, *, on_gap: OnGap | None = None) -> Callable[[C], C]: ...
    @refusals_documented
    def subscribe(
        self, topic: str, callback: Callback | None = None, *, on_gap: OnGap | None = None
    ) -> Subscription | Callable[[C], C]:
        """Call `callback(event)` for each publication to the topic, or to those that match the pattern.

        In a pattern `*` stands for any characters, `?` for one.  What is published after this call has returned comes,
        or `on_gap(gap)` is called.  Read what you want to keep up to date after this call, not before.  Returns a
        handle, whose close() ends it; without a callback it is a decorator.  What a callback raises is logged.
        """
        if callback is None:

            def decorate(function: C) -> C:
                self.subscribe(topic, function, on_gap=on_gap)
                return function

            return decorate
        subscription = Subscription(self, topic, callback, on_gap)
        self._add(subscription)
        return subscription

    def on_gap(self, callback: OnGap) -> OnGap:
        """Call `callback(gap)` whenever something may have been missed, to whatever topic.  A decorator, too."""
        self._on_gap = (*self._on_gap, callback)
        return callback

    # What there is

    @refusals_documented
    def generation(self) -> int:
        """How much has been published in the directory since it was made.  Two that are equal: nothing in between."""
        return self._open().progress.table.generation()

    def is_current(self) -> bool:
        """Whether all that has been published until now has been handled in this process.

        It costs a microsecond or two, and says something only in a process that subscribes.
        """
        return self._open().progress.is_current()

    @refusals_documented
    def topics(self, timeout: float | None = ACK_TIMEOUT) -> dict[int, list[str]]:
        """The topics and patterns that are subscribed to, by pid, of those processes that answer in time."""
        hub = self._open()
        answers = hub.messaging.survey(ASK, b"", TOPICS, timeout).answers
        found = {pid: unpack_topics(answer.data) for pid, answer in answers.items()}
        if len(hub.subscriptions):
            found[hub.messaging.server_id.pid] = hub.subscriptions.topics()
        return dict(sorted(found.items()))

    # Dispatching

    def fileno(self) -> int:
        """A descriptor that is readable when dispatch() has something to do, for select and event loops."""
        return self._open().messaging.fileno()

    def dispatch(self, timeout: float | None = 0) -> int:
        """Run the callbacks of what has come in, as Messaging.dispatch does; for programs without background threads.

        It also looks for what has not come: so call it once a second at least.  Raises AlreadyDispatching.
        """
        hub, deadline = self._open(), None if timeout is None else time.monotonic() + timeout
        while True:
            now = time.monotonic()
            if now >= self._next_tick:
                self._next_tick = now + self._interval
                hub.tick()
            left = self._next_tick - now if deadline is None else min(deadline, self._next_tick) - now
            handled = hub.messaging.dispatch(max(left, 0.0))
            if handled or (deadline is not None and time.monotonic() >= deadline):
                return handled

    @refusals_documented
    def close(self, timeout: float | None = None) -> int:
        """End the subscriptions, and send what is queued, for at most `timeout` seconds (`msgd:close timeout`).

        Returns the number of publications that could not be delivered; their subscribers find that out.  A second call
        does nothing.
        """
        return self._close(timeout)
