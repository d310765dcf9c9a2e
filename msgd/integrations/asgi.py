# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A lifespan for ASGI applications (Starlette, FastAPI, Litestar), which opens topics when a worker starts.

    topics = Lifespan()
    app = FastAPI(lifespan=topics)

Rule 1.  It is made when the module is imported, and subscriptions may be declared from then on.  It opens nothing
    until the server has started the worker: before a fork, or in a process that only looks at the module, it is inert.
Rule 2.  What is published between the import and the start is a gap, so what the module has read is never stale without
    its knowing.
Rule 3.  A lifespan may begin again, as it does in tests; each time there is a new PubSub with the same subscriptions.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, TypeVar

from msgd.aio import PubSub
from msgd.config import Config
from msgd.errors import ContextClosed
from msgd.pubsub.events import Callback, OnGap, Publication
from msgd.pubsub.subscriptions import check_callbacks, matcher
from msgd.wire.pubsub import Data

C = TypeVar("C", bound=Callback)


class _Wanted(NamedTuple):
    topic: str
    callback: Callback
    named: dict[str, Any]


class Lifespan:
    """Topics of an ASGI application.  The arguments are those of msgd.aio.PubSub.

    `pubsub`: the msgd.aio.PubSub of this worker, while the application runs.
    """

    def __init__(
        self, directory: str | os.PathLike[str] | Config | None = None, *, name: str | None = None, **named: Any
    ) -> None:
        self._make = functools.partial(PubSub, directory, name=name, **named)
        self._next = self._make()
        self._open: PubSub | None = None
        self._wanted: list[_Wanted] = []
        self._on_gap: list[OnGap] = []

    @contextlib.asynccontextmanager
    async def __call__(self, app: object = None) -> AsyncIterator[None]:
        """The lifespan itself; inside another one: `async with topics(app): yield`."""
        try:
            async with self._next as pubsub:
                for callback in self._on_gap:
                    pubsub.on_gap(callback)
                for one in self._wanted:
                    pubsub.subscribe(one.topic, one.callback, **one.named)
                pubsub.tell_what_was_before()
                self._open = pubsub
                yield
        finally:
            self._open, self._next = None, self._make()

    @property
    def pubsub(self) -> PubSub:
        """The open PubSub.  Raises ContextClosed while the application does not run."""
        if self._open is None:
            raise ContextClosed("the application's lifespan has not begun: does the server support lifespan?")
        return self._open

    def subscribe(self, topic: str, *, on_gap: OnGap | None = None, **named: Any) -> Callable[[C], C]:
        """A decorator, as msgd.aio.PubSub.subscribe is; for as long as the application runs, each time it does."""
        matcher(topic)

        def decorate(callback: C) -> C:
            check_callbacks(callback, on_gap)
            one = _Wanted(topic, callback, {"on_gap": on_gap, **named})
            if self._open is not None:
                self._open.subscribe(topic, callback, **one.named)
            self._wanted.append(one)
            return callback

        return decorate

    def on_gap(self, callback: OnGap) -> OnGap:
        """A decorator, as msgd.aio.PubSub.on_gap is."""
        if self._open is not None:
            self._open.on_gap(callback)
        self._on_gap.append(callback)
        return callback

    async def publish(self, topic: str, data: Data = b"", **named: Any) -> Publication:
        """As msgd.aio.PubSub.publish, which has the other arguments."""
        return await self.pubsub.publish(topic, data, **named)
