# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A round of an endpoint: what is queued is sent, what has come is received, and its handlers run.

Rule 1.  What is received is put into the inbox under the endpoint's lock, and delivered from there without it, by the
one thread whose turn it is (turn.py).
Rule 2.  A message that an interrupt leaves in the inbox is delivered by the next dispatch, which the backend is told to
wake up for.
Rule 3.  After each round, those who wait beside the thread that dispatches are woken up, and see what has changed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from msgd.backends.base import Backend
from msgd.backends.spin import Spinner
from msgd.errors import is_of_system, system_error
from msgd.linux import LONGEST_WAIT
from msgd.messaging.handlers import ContextView, Delivery
from msgd.messaging.observer import Observer
from msgd.messaging.turn import Turn
from msgd.wire.header import Message

_ROUNDS_MAX = 1000
"""Rounds of dispatch_all(): a flood does not keep it for ever."""


class Rounds:
    """The part of an endpoint that dispatches.  The attributes are the endpoint's."""

    lock: threading.RLock
    turn: Turn
    backend: Backend
    delivery: Delivery
    inbox: deque[Message]
    spinner: Spinner
    contexts: dict[int, ContextView]
    observer: Observer | None
    after_rounds: tuple[Callable[[], None], ...]
    idle_rounds: int
    closed: bool
    forked: bool

    def dispatch(self, timeout: float | None, *, as_dispatcher: bool = False) -> int:
        """Send what is queued, receive, run handlers; see Messaging.dispatch.  Raises AlreadyDispatching.

        `as_dispatcher`: the caller is the background dispatcher.
        """
        me, turn, delivery = threading.get_ident(), self.turn, self.delivery
        outermost, before = turn.owner != me, delivery.handled
        try:
            if self._receive(me if outermost else 0, timeout, as_dispatcher):
                self._deliver()
                if delivery.handled != before:
                    return delivery.handled - before
            elif turn.owner != me:
                return 0  # a guest sees to what there is
            if timeout is not None and timeout <= 0:
                return delivery.handled - before
            deadline = None if timeout is None else time.monotonic() + timeout
            left = None if timeout is None else min(timeout, LONGEST_WAIT)
            while self.contexts and not (self.forked or self.closed):
                self.backend.wait(left)
                if self._receive():
                    self._deliver()
                if delivery.handled != before:
                    break
                if deadline is not None and (left := min(deadline - time.monotonic(), LONGEST_WAIT)) <= 0:
                    break
            return delivery.handled - before
        except (OSError, MemoryError) as error:
            if is_of_system(error):
                raise system_error("dispatching", error) from error
            raise
        finally:
            if outermost and turn.owner == me:
                turn.owner = 0
                if turn.hosts_waiting or turn.waiters:
                    turn.notify()

    def dispatch_all(self) -> bool:
        """Dispatch until nothing comes, a bounded number of rounds.  Returns False if another thread is to dispatch."""
        me, turn = threading.get_ident(), self.turn
        outermost = turn.owner != me
        try:
            if outermost and not turn.take_as_guest():
                return False
            for _ in range(_ROUNDS_MAX):
                if not self.round():
                    break
            return True
        finally:
            if outermost:
                turn.release(me)

    def round(self) -> bool:
        """Flush, receive once and deliver.  Returns whether anything had come.  For the thread whose turn it is."""
        return self._receive() and self._deliver()

    def _receive(self, host: int = 0, timeout: float | None = 0, as_dispatcher: bool = False) -> bool:
        """Flush, and receive once into the inbox.

        A `host` that is not 0 is this thread, and takes the turn first: one lock does for both.  Returns whether
        _deliver() has something to do: not if nothing has come and nobody is to be told of the round, nor if another
        thread dispatches, or the endpoint is closed.
        """
        with self.lock:
            if host:
                turn = self.turn
                if not (turn.owner or turn.has_dispatcher):
                    turn.owner, turn.is_guest = host, False
                elif not turn.take_as_host(None if as_dispatcher else timeout, as_dispatcher=as_dispatcher):
                    return False  # a guest sees to what there is
            if self.closed or self.forked:
                return False
            backend = self.backend
            if backend.unsent or (backend.gathered and not host):  # a handler that dispatches has sent something
                backend.flush()
            elif (
                host
                and not (self.spinner.number or self.inbox or self.turn.waiters or self.after_rounds or self.observer)
                and (timeout is None or timeout > 0)
            ):
                return False  # while it does not spin, there is mostly nothing here yet, and wait() looks as well
            try:
                backend.receive(self.inbox.append)
            except BaseException:
                backend.wake()  # a signal's handler has raised: the next dispatch is to find what has come
                raise
        return bool(self.inbox or self.turn.waiters or self.after_rounds or self.observer)

    def _deliver(self) -> bool:
        """Run the handlers of what is in the inbox.  Returns whether there was anything."""
        inbox, delivery, before = self.inbox, self.delivery, self.delivery.received
        try:
            if inbox:
                if self.backend.gathers:
                    self._deliver_gathering()
                else:
                    delivery.run(inbox)
            if self.observer is not None:
                self.observer.dispatched()
            return delivery.received != before
        finally:
            if inbox and not (self.closed or self.forked):
                self.backend.wake()  # an interrupt has come: the next dispatch is to find what it has left here
            if self.turn.waiters:
                self.idle_rounds += delivery.received == before
                with self.lock:
                    self.turn.wake_waiters()
            for after_round in self.after_rounds:
                after_round()

    def _deliver_gathering(self) -> None:
        """Run the handlers, and send what they have sent at once for all of them."""
        backend = self.backend
        backend.begin_gathering(len(self.inbox) == 1)
        try:
            self.delivery.run(self.inbox)
        finally:
            if backend.end_gathering():
                with self.lock:
                    if not (self.closed or self.forked):
                        backend.flush()
