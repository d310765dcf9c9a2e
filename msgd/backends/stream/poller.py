# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the stream endpoint waits for: its sockets and one timer, behind a single descriptor.

Rule 1. fileno() polls readable whenever receive() or flush() has something to do.

Rule 2. A socket is polled for writing only while messages wait for it.

Rule 3. Two states have no descriptor that reports their end: a peer's full backlog (connect() fails with EAGAIN), and
a lack of file descriptors in this process.  The timer makes fileno() readable when it is time to try again.

Rule 4. Events that wait() has found are kept for the next take_events(), so that a wake-up costs one poll.
"""

from __future__ import annotations

import contextlib
import select
from functools import partial

from msgd.backends.spin import Spinner
from msgd.linux import EventFd, TimerFd, new_epoll, wait_readable

_EVENTS_PER_POLL = 32
"""Sockets that one round of receive() serves at most, so that a flood does not keep dispatch from its other work."""

RETRY_INTERVAL = 0.01
"""Seconds until the next attempt after a full backlog, or after a lack of descriptors."""


class Poller:
    """An epoll instance, its timer, and the events that wait() has found."""

    def __init__(self, spinner: Spinner) -> None:
        with contextlib.ExitStack() as opened:
            self._epoll = opened.enter_context(contextlib.closing(new_epoll()))
            self.wake_up = opened.enter_context(contextlib.closing(EventFd()))
            self._epoll.register(self.wake_up, select.EPOLLIN)
            self._timer = opened.enter_context(contextlib.closing(TimerFd()))
            self.timer_fd = self._timer.fileno()
            self._epoll.register(self.timer_fd, select.EPOLLIN)
            self._opened = opened.pop_all()
        self._found: list[tuple[int, int]] = []
        self._spin = spinner
        self._poll_now = partial(self._epoll.poll, 0, _EVENTS_PER_POLL)

    def fileno(self) -> int:
        """The descriptor that polls readable when there is an event."""
        return self._epoll.fileno()

    def watch(self, fd: int) -> None:
        """Poll a socket for reading from now on."""
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Stop polling a socket that is about to be closed."""
        self._epoll.unregister(fd)

    def set_readable(self, fd: int, *, enabled: bool) -> None:
        """Poll a watched socket for reading, or only for errors."""
        self._epoll.modify(fd, select.EPOLLIN if enabled else 0)

    def set_writable(self, fd: int, *, enabled: bool) -> None:
        """Poll a watched socket for reading, and also for writing if `enabled`."""
        self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT if enabled else select.EPOLLIN)

    def wake_after(self, seconds: float) -> None:
        """Report the timer as readable in so many seconds; this replaces the time that was set before."""
        self._timer.start(seconds)

    def acknowledge_timer(self) -> None:
        """Handle the timer's event: it is not readable until it is set again."""
        self._timer.acknowledge()

    def wait(self, timeout: float | None, watched: int = -1) -> bool:
        """Wait for an event or for `watched`, at most `timeout` seconds (None: no limit).

        Returns whether `watched` is readable.
        """
        if watched >= 0:
            return wait_readable(self._epoll.fileno(), timeout, watched)
        self._found = self._spin(self._poll_now) or self._epoll.poll(timeout, _EVENTS_PER_POLL)
        return False

    def take_events(self) -> list[tuple[int, int]]:
        """The events (descriptor, epoll flags) that wait() has found, or those that there are now; never waits."""
        found = self._found
        if found:
            self._found = []
            return found
        return self._poll_now()

    def close(self) -> None:
        """Close its descriptors."""
        self._opened.close()
