# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The ends of processes that requests wait for: one pidfd for each process, however many requests ask it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from msgd.aio.driver import Loop
from msgd.errors import ContextClosed, NoSuchProcess
from msgd.messaging.context import Messaging
from msgd.messaging.endpoint import Endpoint
from msgd.messaging.requests import PendingRequest

_AGAIN = 0.005
"""Seconds until it is tried again to read what an ended process has sent, while another thread dispatches."""


@dataclass
class _Watched:
    pidfd: int
    has_ended: bool = False
    requests: set[PendingRequest] = field(default_factory=set)


class Ends:
    """Settles the requests in flight to a process when it has ended and all that it sent has been read."""

    def __init__(self, loop: Loop, endpoint: Endpoint) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._watched: dict[tuple[int, int], _Watched] = {}

    @contextlib.contextmanager
    def watching(self, messaging: Messaging, request: PendingRequest) -> Iterator[None]:
        """Watch the process that the request asks; NoSuchProcess if it does not live."""
        key = request.dst.pid, request.dst.unique_id
        watched = self._watched.get(key)
        if watched is None or watched.has_ended:
            watched = self._watched[key] = _Watched(messaging._watch_for_answer(request.dst))
            self._loop.add_reader(watched.pidfd, self._has_ended, watched)
        watched.requests.add(request)
        try:
            yield
        finally:
            watched.requests.discard(request)
            if not watched.requests:
                if self._watched.get(key) is watched:
                    del self._watched[key]
                self._loop.remove_reader(watched.pidfd)
                os.close(watched.pidfd)

    def _has_ended(self, watched: _Watched) -> None:
        watched.has_ended = True
        self._loop.remove_reader(watched.pidfd)
        self._settle(watched)

    def _settle(self, watched: _Watched) -> None:
        if not self._endpoint.dispatch_all():
            self._loop.call_later(_AGAIN, self._settle, watched)
            return
        for request in tuple(watched.requests):
            request.settle(error=NoSuchProcess(f"{request.dst} ended before it answered", dst=request.dst))

    def close(self) -> None:
        """The context closes: its requests are not going to be answered, and let go of what they watch."""
        for watched in tuple(self._watched.values()):
            for request in tuple(watched.requests):
                request.settle(error=ContextClosed("this messaging context has been closed"))
