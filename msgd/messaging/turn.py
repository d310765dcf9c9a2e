# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Whose turn it is to dispatch: one thread at a time receives and runs handlers.

Rule 1.  A host is a thread in dispatch(), or the background dispatcher from start() to stop().  There is one at a time;
a second one gets AlreadyDispatching.
Rule 2.  A guest is a thread that waits for the answer to its own request, or for room in a queue.  It dispatches while
nobody else does and there is no background dispatcher, so that a program without threads needs none.  It leaves as soon
as a host waits for the turn, and the host waits for its handler to return.  dispatch(0) does not wait: it returns 0, as
the guest sees to what there is.
Rule 3.  A thread may dispatch within a handler that it runs: the turn is its own already.
Rule 4.  A thread that waits while another has the turn has a descriptor (Waiter).  It is woken when the turn becomes
free, so that it can take over, and after each round, so that it sees what has changed.

The endpoint's lock guards it.  release() alone writes without it: it clears `owner` first and reads the waiters
afterwards, while a waiter adds itself first and reads `owner` afterwards; so one of the two sees the other.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from msgd.errors import AlreadyDispatching
from msgd.linux import LONGEST_WAIT, wait_readable


class Waiter:
    """A thread that waits beside the one that dispatches: a context manager, inside of which it can be woken."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __enter__(self) -> Waiter:
        with self._turn.lock:
            self._turn.waiters.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        with self._turn.lock:  # nobody wakes it any more once its descriptor is closed
            self._turn.waiters.discard(self)
        os.close(self._fd)

    def wake(self) -> None:
        """Make wait() return."""
        os.eventfd_write(self._fd, 1)

    def wait(self, timeout: float, watched: int = -1) -> bool:
        """Wait to be woken, or until the descriptor `watched` is readable.  Returns whether that is readable."""
        ended = wait_readable(self._fd, min(max(timeout, 0.0), LONGEST_WAIT), watched)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        return ended


class Turn:
    """The turn of one endpoint.  `lock` is the endpoint's; `wake` ends the wait of the thread that has the turn.

    To be used like this, so that an exception that a signal's handler raises at any point leaves the turn free:

        outermost = turn.owner != (me := threading.get_ident())
        try:
            if outermost and not turn.take_as_host(timeout): ...
        finally:
            if outermost:
                turn.release(me)
    """

    def __init__(self, lock: threading.RLock, wake: Callable[[], None]) -> None:
        self.owner = 0
        """The thread that has the turn, as threading.get_ident() gives it; 0: none."""
        self.hosts_waiting = 0
        """Threads for which a guest is to leave."""
        self.has_dispatcher = False
        """Whether there is a background dispatcher, so that no guest needs to dispatch."""
        self.waiters: set[Waiter] = set()
        self.lock = lock
        self._free = threading.Condition(lock)
        self._wake = wake
        self.is_guest = False
        """Whether that thread leaves as soon as a host waits."""

    @property
    def is_served(self) -> bool:
        """Whether a thread dispatches, or will as soon as there is something."""
        return bool(self.owner) or self.has_dispatcher

    def take_as_host(self, timeout: float | None, *, as_dispatcher: bool = False) -> bool:
        """Take the turn.  Returns False if a guest has not left it within `timeout` seconds (None: for ever).

        Raises AlreadyDispatching if another host has it, or if there is a background dispatcher and it is not the
        caller.
        """
        with self.lock:
            if self.has_dispatcher and not as_dispatcher:
                raise AlreadyDispatching("the background dispatcher dispatches here; call stop() first")
            if self.owner:
                self._wait_for_turn(timeout, as_dispatcher=as_dispatcher)
            if not self.owner:
                self.owner, self.is_guest = threading.get_ident(), False
        return self.owner == threading.get_ident()

    def take_as_guest(self) -> bool:
        """Take the turn if nobody has it or wants it.  Returns whether this thread has it now."""
        with self.lock:
            if not self.owner and not self.hosts_waiting and not self.has_dispatcher:
                self.owner, self.is_guest = threading.get_ident(), True
        return self.owner == threading.get_ident()

    def take_to_close(self, deadline: float) -> bool:
        """Take the turn from whoever has it: the endpoint is closed, so it leaves as soon as its handler returns.

        Returns False if that handler has not returned by the deadline; the caller closes all the same.
        """
        with self.lock:
            self.hosts_waiting += 1
            try:
                while self.owner and (left := deadline - time.monotonic()) > 0:
                    self._wake()
                    self._free.wait(left)
            finally:
                self.hosts_waiting -= 1
            if not self.owner:
                self.owner, self.is_guest = threading.get_ident(), False
            return self.owner == threading.get_ident()

    def release(self, thread: int) -> None:
        """Give the turn up, if it is this thread's."""
        if self.owner == thread:
            self.owner = 0
            if self.hosts_waiting or self.waiters:
                self.notify()

    def notify(self) -> None:
        """The turn is free: wake those that want it."""
        with self.lock:
            self._free.notify_all()
            self.wake_waiters()

    def _wait_for_turn(self, timeout: float | None, *, as_dispatcher: bool) -> None:
        """Wait until a guest has left; the background dispatcher waits for a host as well, until it is stopped."""
        if timeout == 0 and self.is_guest:
            return  # the guest sees to what there is
        deadline = None if timeout is None else time.monotonic() + timeout
        self.hosts_waiting += 1
        try:
            while self.owner and (self.has_dispatcher or not as_dispatcher):
                if not self.is_guest and not as_dispatcher:
                    raise AlreadyDispatching(
                        "another thread dispatches the messages of this process; only one may: leave it to that thread"
                    )
                if self.is_guest:
                    self._wake()
                left = LONGEST_WAIT if deadline is None else deadline - time.monotonic()
                if left <= 0 or not self._free.wait(left):
                    break
        finally:
            self.hosts_waiting -= 1

    def wake_waiters(self) -> None:
        """Something may have changed for those who wait."""
        for waiter in tuple(self.waiters):
            waiter.wake()
