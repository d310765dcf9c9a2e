# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The ends of processes that requests wait for: one pidfd for each process, however many requests ask it.

To open a pidfd and to check whose it is takes more system calls than to ask the process.  So those of subscribers, who
are asked again and again, are kept: until the process ends, or more than _KEPT_MAX are kept.
"""

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
from msgd.wire.server_id import ServerID

_KEPT_MAX = 256
"""Pidfds that are kept though no request waits for the end of the process."""

_AGAIN = 0.005
"""Seconds until it is tried again to read what an ended process has sent, while another thread dispatches."""


@dataclass
class _Watched:
    pidfd: int
    has_ended: bool = False
    is_kept: bool = False
    requests: set[PendingRequest] = field(default_factory=set)


class Ends:
    """Settles the requests in flight to a process when it has ended and all that it sent has been read."""

    def __init__(self, loop: Loop, endpoint: Endpoint) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._watched: dict[ServerID, _Watched] = {}

    @contextlib.contextmanager
    def watching(self, messaging: Messaging, request: PendingRequest, *, keep: bool = False) -> Iterator[None]:
        """Watch the process that the request asks, later too if told to keep it; NoSuchProcess if it has ended."""
        watched = self._watched.get(request.dst)
        if watched is None:
            watched = self._watched[request.dst] = _Watched(messaging._watch_for_answer(request.dst))
            self._loop.add_reader(watched.pidfd, self._has_ended, request.dst, watched)
        watched.requests.add(request)
        try:
            yield
        finally:
            watched.requests.discard(request)
            watched.is_kept |= keep
            if not (watched.requests or watched.has_ended or (watched.is_kept and len(self._watched) <= _KEPT_MAX)):
                self._forget(request.dst, watched)

    def _has_ended(self, dst: ServerID, watched: _Watched) -> None:
        watched.has_ended = True
        self._forget(dst, watched)
        self._settle(watched)

    def _forget(self, dst: ServerID, watched: _Watched) -> None:
        del self._watched[dst]
        self._loop.remove_reader(watched.pidfd)
        os.close(watched.pidfd)

    def _settle(self, watched: _Watched) -> None:
        if not self._endpoint.dispatch_all():
            self._loop.call_later(_AGAIN, self._settle, watched)
            return
        for request in tuple(watched.requests):
            request.settle(error=NoSuchProcess(f"{request.dst} ended before it answered", dst=request.dst))

    def close(self) -> None:
        """The context closes: its requests are not going to be answered, and let go of what they watch."""
        for dst, watched in tuple(self._watched.items()):
            self._forget(dst, watched)
            for request in tuple(watched.requests):
                request.settle(error=ContextClosed("this messaging context has been closed"))
