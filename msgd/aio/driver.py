# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The driver: which event loop dispatches an endpoint's messages.

Rule 1.  An endpoint has one driver, however many asyncio contexts share it and in however many loops and threads they
live.  One of the loops, the owner, watches the endpoint's descriptor.  When its last context leaves, another loop of
the driver becomes the owner.
Rule 2.  Where another thread dispatches (a background dispatcher, say), the owner backs off and tries again: a
descriptor that stays readable must not make the loop spin.
Rule 3.  The driver pauses while a consumer is full: what comes then waits in the senders, which are told QueueFull at
their bound, and not in this process's memory.  It never pauses while a request is in flight or a send waits for room:
that may be what the consumer waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from msgd.errors import AlreadyDispatching, MsgdError
from msgd.messaging.endpoint import Endpoint

_BACK_OFF = 0.005
"""Seconds until the descriptor is watched again while another thread dispatches."""

_CHECK_DISPATCHER = 0.25
"""Seconds until it is checked whether the background dispatcher has stopped; while it runs, nothing is missed."""

Loop = asyncio.AbstractEventLoop


class Driver:
    """Dispatches an endpoint from one of the loops that have contexts there."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._fd = endpoint.backend.fileno()
        self._loops: dict[Loop, list[Callable[[], None]]] = {}
        """By loop, what to call in it after each dispatch, one callback for each context."""
        self._owner: Loop | None = None
        self._is_watching = False
        self._full = 0
        """Consumers that have too much to do."""
        self._urgent = 0
        """Calls that wait for a dispatch to make progress."""
        self._lock = threading.Lock()

    def join(self, loop: Loop, on_progress: Callable[[], None]) -> None:
        """A context of the running loop is there; `on_progress` is called in that loop after each dispatch."""
        with self._lock:
            for closed in [one for one in self._loops if one.is_closed()]:  # it has ended without aclose()
                del self._loops[closed]
            self._loops.setdefault(loop, []).append(on_progress)
            if self._owner is None or self._owner.is_closed():
                self._owner, self._is_watching = loop, False
        if self._owner is loop:
            self._watch()
            loop.call_soon(self._dispatch)

    def leave(self, loop: Loop, on_progress: Callable[[], None]) -> bool:
        """A context of the running loop leaves; whether it was the last of all."""
        with self._lock:
            self._loops[loop].remove(on_progress)
            if self._loops[loop]:
                return False
            del self._loops[loop]
            is_owner = self._owner is loop
            if is_owner:
                self._owner = None
        if is_owner:
            self._unwatch(loop)
            self._hand_over()
        return not self._loops

    def _hand_over(self) -> None:
        """Make another loop the owner; one that has been closed without leaving is passed over."""
        for other in tuple(self._loops):
            with self._lock:
                self._owner = other
            try:
                other.call_soon_threadsafe(self._take_over, other)
            except RuntimeError:  # that loop is closed
                continue
            return
        self._owner = None

    def _take_over(self, loop: Loop) -> None:
        if self._owner is loop:
            self._watch()
            self._dispatch()

    def _watch(self) -> None:
        if self._owner is not None and not self._is_watching:
            self._is_watching = True
            self._owner.add_reader(self._fd, self._dispatch)

    def _unwatch(self, loop: Loop) -> None:
        if self._is_watching:
            self._is_watching = False
            loop.remove_reader(self._fd)

    def _dispatch(self) -> None:
        """Dispatch once, in the owner's thread."""
        owner = self._owner
        if owner is None or self._endpoint.closed or self._endpoint.forked:
            return
        if self._full and not self._urgent and not len(self._endpoint.requests):
            self._unwatch(owner)
            return
        try:
            self._endpoint.dispatch(0)
        except AlreadyDispatching:
            self._unwatch(owner)
            seconds = _CHECK_DISPATCHER if self._endpoint.turn.has_dispatcher else _BACK_OFF
            owner.call_later(seconds, self._take_over, owner)
            return
        except MsgdError as error:
            owner.call_exception_handler({"message": f"dispatching messages: {error}", "exception": error})
            return

    def tell_progress(self) -> None:
        """Called after each round, in the thread that dispatches."""
        for loop, callbacks in tuple(self._loops.items()):
            for callback in tuple(callbacks):
                with contextlib.suppress(RuntimeError):  # that loop is closed
                    loop.call_soon_threadsafe(callback)

    # Flow control

    def pause(self) -> None:
        """One more consumer is full."""
        with self._lock:
            self._full += 1

    def resume(self) -> None:
        """One consumer has room again."""
        with self._lock:
            self._full -= 1
            owner = self._owner
        if owner is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                owner.call_soon_threadsafe(self._take_over, owner)

    @contextlib.contextmanager
    def urgent(self) -> Iterator[None]:
        """Go on although a consumer is full: inside, a call waits for what a dispatch brings."""
        with self._lock:
            self._urgent += 1
            owner = self._owner
        try:
            if self._full and owner is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    owner.call_soon_threadsafe(self._take_over, owner)
            yield
        finally:
            with self._lock:
                self._urgent -= 1


_drivers: dict[Endpoint, Driver] = {}
_drivers_lock = threading.Lock()


def join(endpoint: Endpoint, loop: Loop, on_progress: Callable[[], None]) -> Driver:
    """The endpoint's driver, with a context of the running loop in it."""
    with _drivers_lock:
        driver = _drivers.get(endpoint)
        if driver is None:
            driver = _drivers[endpoint] = Driver(endpoint)
            endpoint.after_rounds = (driver.tell_progress,)
    driver.join(loop, on_progress)
    return driver


def leave(endpoint: Endpoint, driver: Driver, loop: Loop, on_progress: Callable[[], None]) -> None:
    """Take a context of the running loop out of the driver."""
    with _drivers_lock:
        if driver.leave(loop, on_progress):
            _drivers.pop(endpoint, None)
            endpoint.after_rounds = ()


def _forget_in_child() -> None:
    global _drivers_lock
    _drivers_lock = threading.Lock()
    _drivers.clear()


os.register_at_fork(after_in_child=_forget_in_child)
