"""The event loop of msgd's processes: readable and writable descriptors, signals, timers.

Signals.  The handlers do nothing: the interpreter's C-level handler writes each signal's number to a wake-up pipe,
which is one of the descriptors the loop waits for, so what a signal asks for is done between two events and never in
the middle of one.  A signal that comes just before the loop waits has its byte in the pipe already.  Of the events that
are there at once, signals come first.

Questions.  Who sends a signal and then asks is to be answered by a process that has obeyed it.  The kernel delivers the
signal at the latest when the call returns that reads the question: by then its byte is in the pipe.  But the loop may
have looked for events before, and one callback may read several questions.  So a callback that answers what depends on
signals calls obey_signals() first.

Fork.  A child has copies of the pipe: a signal to the child would write into it and be taken for one to the parent.
So the child is forked with all signals blocked and calls abandon() before it lets them in.

Everything runs in one thread, the main one.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

Callback = Callable[[], None]

_PIPE_READ = 4096


class Timer:
    """Calls back every `interval` seconds; 0 is never.  Setting `interval` starts the time anew."""

    def __init__(self, interval: float, callback: Callback) -> None:
        self._callback = callback
        self.interval = interval

    @property
    def interval(self) -> float:
        """Seconds between two calls."""
        return self._interval

    @interval.setter
    def interval(self, seconds: float) -> None:
        self._interval = seconds
        self.due = time.monotonic() + seconds if seconds else float("inf")

    def run_if_due(self, now: float) -> None:
        """Call back if the time has come; a late call does not make the next ones come sooner."""
        if now >= self.due:
            self.interval = self._interval
            self._callback()


class Loop:
    """Waits for events and runs their callbacks until stop(); a context manager that gives the signals back."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._callbacks: dict[int, dict[int, Callback]] = {}
        self._timers: list[Timer] = []
        self._signal_callbacks: dict[int, Callback] = {}
        self._former_handlers: dict[int, object] = {}
        self._stopping = False
        self._wake_up, self._written_by_signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._former_wake_up = signal.set_wakeup_fd(self._written_by_signals)
        self.on_readable(self._wake_up, self.obey_signals)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._give_back_signals(self._former_wake_up)

    def abandon(self) -> None:
        """In a forked child, with signals blocked: let go of the parent's loop."""
        self._give_back_signals(-1)

    def _give_back_signals(self, wake_up: int) -> None:
        for signum, handler in self._former_handlers.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # as signal.signal returned it
        signal.set_wakeup_fd(wake_up)
        self._selector.close()
        os.close(self._wake_up)
        os.close(self._written_by_signals)

    def on_readable(self, fd: int, callback: Callback | None) -> None:
        """Call back whenever the descriptor is readable; None: no more, to be said before it is closed."""
        self._watch(fd, selectors.EVENT_READ, callback)

    def on_writable(self, fd: int, callback: Callback | None) -> None:
        """Call back whenever the descriptor takes something; None: no more, to be said before it is closed."""
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
            del self._callbacks[fd]  # whatever has this number next is another descriptor

    def on_signal(self, signum: signal.Signals, callback: Callback) -> None:
        """Call back, in the loop, after the signal has come; it is caught from now on."""
        self._signal_callbacks[signum] = callback
        former = signal.signal(signum, _only_wake_up)
        self._former_handlers.setdefault(signum, former)

    def every(self, interval: float, callback: Callback) -> Timer:
        """Call back every `interval` seconds; 0: not until the timer's interval is set."""
        timer = Timer(interval, callback)
        self._timers.append(timer)
        return timer

    def forget(self, timer: Timer) -> None:
        """Call back no more."""
        timer.interval = 0  # it may be due in the round that is running
        self._timers.remove(timer)

    def stop(self) -> None:
        """Let run() return after the callback that is running."""
        self._stopping = True

    def run(self) -> None:
        """Wait and call back until stop() is called; what a callback raises ends it."""
        while not self._stopping:
            ready = self._selector.select(self._seconds_to_next_timer())
            ready.sort(key=self._signals_first)
            for key, events in ready:
                for event in (selectors.EVENT_READ, selectors.EVENT_WRITE):
                    callback = key.data.get(event)  # None: an earlier callback has seen to it
                    if events & event and callback is not None:
                        callback()
                        if self._stopping:
                            return
            now = time.monotonic()
            for timer in tuple(self._timers):
                timer.run_if_due(now)

    def _signals_first(self, event: tuple[selectors.SelectorKey, int]) -> bool:
        return event[0].fd != self._wake_up

    def _seconds_to_next_timer(self) -> float | None:
        due = min((timer.due for timer in self._timers), default=float("inf"))
        return None if due == float("inf") else max(0.0, due - time.monotonic())

    def obey_signals(self) -> None:
        """Call back now for the signals that have come."""
        try:
            numbers = os.read(self._wake_up, _PIPE_READ)
        except BlockingIOError:
            return
        for signum in dict.fromkeys(numbers):  # each once, in the order they came
            callback = self._signal_callbacks.get(signum)
            if callback is not None:
                callback()


def _only_wake_up(signum: int, frame: FrameType | None) -> None:
    """Keep the signal's default action away; the C-level handler has queued its number."""
