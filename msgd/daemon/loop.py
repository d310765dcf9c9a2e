# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The event loop of msgd's processes: descriptors, signals, timers.

Rule 1.  Everything runs in one thread, the main one.

Rule 2.  A turn of the loop polls, runs the callbacks of the descriptors that are ready, then those of the timers that
are due, then the callback that was registered with at_end_of_turn().

Rule 3.  Signals are handled between two events, never in the middle of one, and before the other events of the turn.
The Python-level handler does nothing.  The interpreter's C-level handler writes the signal's number to a wake-up pipe,
which is one of the descriptors that the loop polls.  A signal that arrives just before the poll has its byte in the
pipe already, so it is not missed.

Rule 4.  A callback whose answer depends on signals calls obey_signals() first.  A process that sends a signal and then
a question expects an answer from a process that has obeyed the signal.  The kernel delivers the signal at the latest
when the system call that reads the question returns, so the signal's byte is in the pipe by then.  But the poll may be
older than that, and one callback may read several questions, so rule 3 alone is not enough.

Rule 5.  A forked child calls abandon() before it unblocks signals, and the parent forks with all signals blocked.  The
child has copies of the pipe: a signal to the child would otherwise be written into it and taken for one to the parent.

Rule 6.  If a callback fails because the system is out of descriptors or memory, and the loop was made with
`on_shortage`, the other callbacks of the turn run all the same.  Then the loop backs off: what was readable still is,
and would be tried again at once.  Every other exception ends run().
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import time
from collections.abc import Callable
from functools import partial
from types import FrameType, TracebackType
from typing import Self

from msgd.daemon.shortage import is_shortage
from msgd.linux import wait_readable

Callback = Callable[[], None]

_PIPE_READ = 4096

_BACK_OFF = 0.1
"""Seconds, unless a signal comes."""


NEVER = math.inf
"""Seconds, for a timer that does not run."""


class LoopTimer:
    """A callback at a time, made by Loop.call_later() and Loop.call_every()."""

    def __init__(self, running: dict[LoopTimer, None], seconds: float, callback: Callback, *, repeats: bool) -> None:
        self._running = running
        self._seconds = seconds
        self._callback = callback
        self._repeats = repeats
        self.restart()

    @property
    def is_running(self) -> bool:
        """Whether the callback is still to come."""
        return self in self._running

    def restart(self, seconds: float | None = None) -> None:
        """Count from now: `seconds` (NEVER is allowed), or as many as before."""
        if seconds is not None:
            self._seconds = seconds
        self.due = time.monotonic() + self._seconds
        if self.due == NEVER:
            self.cancel()
        else:
            self._running[self] = None

    def cancel(self) -> None:
        """Do not call back, unless restart() is called."""
        self._running.pop(self, None)

    def run_if_due(self, now: float) -> None:
        """Call back if it is time.  A late call of a repeating timer does not bring the next one forward."""
        if self.is_running and now >= self.due:  # an earlier callback of the turn may have cancelled it
            if self._repeats:
                self.restart()
            else:
                self.cancel()
            self._callback()


class Loop:
    """Polls and runs callbacks until stop().  A context manager that restores the signal handlers.

    `on_shortage` is called with the error if the system was out of descriptors or memory for a callback (rule 6).
    """

    def __init__(self, on_shortage: Callable[[Exception], None] | None = None) -> None:
        self._on_shortage = on_shortage
        self._is_short = False
        self._selector = selectors.DefaultSelector()
        self._callbacks: dict[int, dict[int, Callback]] = {}
        self._timers: dict[LoopTimer, None] = {}
        """The timers that are running, as an ordered set."""
        self._end_of_turn: Callback | None = None
        self._signal_callbacks: dict[int, Callback] = {}
        self._former_handlers: dict[int, object] = {}
        self._stopping = False
        self._wake_up, self._written_by_signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._former_wake_up = signal.set_wakeup_fd(self._written_by_signals)
        self.on_readable(self._wake_up, self.obey_signals)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore_signals(self._former_wake_up)

    def abandon(self) -> None:
        """In a forked child, with signals blocked: close the copy of the parent's loop."""
        self._restore_signals(-1)

    def _restore_signals(self, wake_up: int) -> None:
        for signum, handler in self._former_handlers.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # as signal.signal returned it
        signal.set_wakeup_fd(wake_up)
        self._selector.close()
        os.close(self._wake_up)
        os.close(self._written_by_signals)

    def on_readable(self, fd: int, callback: Callback | None) -> None:
        """Call back whenever the descriptor is readable.  None stops that; call it before closing the descriptor."""
        self._watch(fd, selectors.EVENT_READ, callback)

    def on_writable(self, fd: int, callback: Callback | None) -> None:
        """Call back whenever the descriptor is writable.  None stops that; call it before closing the descriptor."""
        self._watch(fd, selectors.EVENT_WRITE, callback)

    def _watch(self, fd: int, event: int, callback: Callback | None) -> None:
        callbacks = self._callbacks.setdefault(fd, {})
        before = sum(callbacks)
        if callback is None:
            callbacks.pop(event, None)
        else:
            callbacks[event] = callback
        after = sum(callbacks)
        if not before and after:
            self._selector.register(fd, after, callbacks)
        elif before and after != before:
            if after:
                self._selector.modify(fd, after, callbacks)
            else:
                self._selector.unregister(fd)
        if not after:
            del self._callbacks[fd]  # the number may be reused by another descriptor

    def on_signal(self, signum: signal.Signals, callback: Callback) -> None:
        """Call back from the loop when the signal arrives.  It is caught from now on."""
        self._signal_callbacks[signum] = callback
        former = signal.signal(signum, _only_wake_up)
        self._former_handlers.setdefault(signum, former)

    def call_later(self, seconds: float, callback: Callback) -> LoopTimer:
        """Call back once, `seconds` from now; 0 is the next turn at the latest, NEVER waits for restart()."""
        return LoopTimer(self._timers, seconds, callback, repeats=False)

    def call_every(self, seconds: float, callback: Callback) -> LoopTimer:
        """Call back every `seconds`; NEVER waits for restart()."""
        return LoopTimer(self._timers, seconds, callback, repeats=True)

    def at_end_of_turn(self, callback: Callback) -> None:
        """Call back after the events and timers of each turn."""
        self._end_of_turn = callback

    def stop(self) -> None:
        """Make run() return after the callback that is running."""
        self._stopping = True

    def run(self) -> None:
        """Poll and call back until stop() is called.  An exception from a callback ends it, but for rule 6."""
        while not self._stopping:
            ready = self._selector.select(self._seconds_to_next_timer())
            ready.sort(key=self._signals_first)
            for key, events in ready:
                for event in (selectors.EVENT_READ, selectors.EVENT_WRITE):
                    callback = key.data.get(event)  # None: an earlier callback has removed it
                    if events & event and callback is not None:
                        self._call(callback)
                        if self._stopping:
                            return
            now = time.monotonic()
            for timer in tuple(self._timers):
                self._call(partial(timer.run_if_due, now))
            if self._end_of_turn is not None:
                self._call(self._end_of_turn)
            if self._is_short:
                self._is_short = False
                wait_readable(self._wake_up, _BACK_OFF)

    def _call(self, callback: Callback) -> None:
        try:
            callback()
        except Exception as error:
            if self._on_shortage is None or not is_shortage(error):
                raise
            self._is_short = True
            self._on_shortage(error)

    def _signals_first(self, event: tuple[selectors.SelectorKey, int]) -> bool:
        return event[0].fd != self._wake_up

    def _seconds_to_next_timer(self) -> float | None:
        due = min((timer.due for timer in self._timers), default=NEVER)
        return None if due == NEVER else max(0.0, due - time.monotonic())

    def obey_signals(self) -> None:
        """Run the callbacks of the signals that have arrived (rule 4)."""
        try:
            numbers = os.read(self._wake_up, _PIPE_READ)
        except BlockingIOError:
            return
        for signum in dict.fromkeys(numbers):  # each once, in order of arrival
            callback = self._signal_callbacks.get(signum)
            if callback is not None:
                self._call(callback)


def _only_wake_up(signum: int, frame: FrameType | None) -> None:
    """Replace the signal's default action; the C-level handler has written its number to the pipe."""
