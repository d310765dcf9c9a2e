# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The event loop: signals between events, timers in time."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from msgd.daemon.loop import NEVER, Loop
from msgd.errors import TransportError


def test_signal_before_the_loop_runs_is_not_lost() -> None:
    seen: list[str] = []
    with Loop() as loop:
        loop.on_signal(signal.SIGUSR1, lambda: seen.append("one"))
        loop.on_signal(signal.SIGUSR2, loop.stop)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert seen == []
        loop.run()
    assert seen == ["one"]


def test_a_signal_comes_before_an_event_that_was_there_before_it() -> None:
    seen: list[str] = []
    reader, writer = os.pipe()
    with Loop() as loop:

        def read() -> None:
            seen.append("event")
            loop.stop()

        loop.on_signal(signal.SIGUSR1, lambda: seen.append("signal"))
        loop.on_readable(reader, read)
        os.write(writer, b"x")
        os.kill(os.getpid(), signal.SIGUSR1)
        loop.run()
    assert seen == ["signal", "event"]
    os.close(reader)
    os.close(writer)


def test_a_signal_that_comes_in_the_middle_of_a_callback_is_obeyed_there() -> None:
    seen: list[str] = []
    reader, writer = os.pipe()
    with Loop() as loop:

        def answer() -> None:
            os.kill(os.getpid(), signal.SIGUSR1)
            loop.obey_signals()
            loop.obey_signals()
            seen.append("answer")
            loop.stop()

        loop.on_signal(signal.SIGUSR1, lambda: seen.append("signal"))
        loop.on_readable(reader, answer)
        os.write(writer, b"x")
        loop.run()
    assert seen == ["signal", "answer"]
    os.close(reader)
    os.close(writer)


def test_an_event_is_not_told_to_another_descriptor_of_the_same_number() -> None:
    pipes = [os.pipe() for _ in range(2)]
    quiet, its_writer = os.pipe()
    seen: list[str] = []
    with Loop() as loop:

        def replace(other: int) -> None:
            seen.append("event")
            loop.on_readable(other, None)
            os.dup2(quiet, other)
            loop.on_readable(other, lambda: seen.append("nothing is there to read"))
            loop.call_later(0.001, loop.stop)

        (one, _), (two, _) = pipes
        loop.on_readable(one, lambda: replace(two))
        loop.on_readable(two, lambda: replace(one))
        for _, writer in pipes:
            os.write(writer, b"x")
        loop.call_later(0.001, loop.stop)
        loop.run()
    assert set(seen) == {"event"}
    for fd in (*sum(pipes, ()), quiet, its_writer):
        os.close(fd)


def test_signals_are_given_back() -> None:
    former = signal.getsignal(signal.SIGUSR1)
    descriptors = os.listdir("/proc/self/fd")
    with Loop() as loop:
        loop.on_signal(signal.SIGUSR1, loop.stop)
        assert signal.getsignal(signal.SIGUSR1) != former
    assert signal.getsignal(signal.SIGUSR1) == former
    assert os.listdir("/proc/self/fd") == descriptors


def test_stop_keeps_later_events_for_nobody() -> None:
    readers = [os.pipe() for _ in range(2)]
    seen = 0
    with Loop() as loop:

        def stop() -> None:
            nonlocal seen
            seen += 1
            loop.stop()

        for reader, writer in readers:
            os.write(writer, b"x")
            loop.on_readable(reader, stop)
        loop.run()
    assert seen == 1
    for fds in readers:
        for fd in fds:
            os.close(fd)


def test_a_repeating_timer_keeps_its_interval_and_never_is_never() -> None:
    seen: list[float] = []
    with Loop() as loop:
        loop.call_every(NEVER, lambda: seen.append(-1))
        began = time.monotonic()

        def tick() -> None:
            seen.append(time.monotonic() - began)
            if len(seen) == 3:
                loop.stop()

        timer = loop.call_every(1000, tick)
        timer.restart(0.01)
        loop.run()
    assert all(elapsed >= 0.01 * (number + 1) for number, elapsed in enumerate(seen))


def test_a_timer_of_call_later_calls_once_until_it_is_restarted() -> None:
    seen: list[str] = []
    with Loop() as loop:

        def once() -> None:
            assert not timer.is_running
            seen.append("once")
            if len(seen) == 1:
                loop.call_later(0.02, timer.restart)
            else:
                loop.stop()

        timer = loop.call_later(0, once)
        loop.run()
    assert seen == ["once", "once"]


def test_a_timer_that_an_earlier_callback_of_the_turn_cancels_does_not_call() -> None:
    seen: list[str] = []
    with Loop() as loop:
        loop.call_later(0, lambda: timer.cancel())
        timer = loop.call_later(0, lambda: seen.append("cancelled"))
        loop.call_later(0, loop.stop)
        loop.run()
    assert seen == []


def test_the_end_of_a_turn_comes_after_its_events_and_timers() -> None:
    seen: list[str] = []
    reader, writer = os.pipe()
    os.write(writer, b"x")
    with Loop() as loop:

        def end_of_turn() -> None:
            seen.append("end")
            loop.stop()

        loop.on_readable(reader, lambda: seen.append("event"))
        loop.call_later(0, lambda: seen.append("timer"))
        loop.at_end_of_turn(end_of_turn)
        loop.run()
    assert seen == ["event", "timer", "end"]
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "none left"), MemoryError(), TransportError("opening")])
def test_a_shortage_ends_nothing(error: Exception) -> None:
    """The callbacks that come after the one that fails run, and it runs again."""
    seen: list[str] = []
    reader, writer = os.pipe()
    os.write(writer, b"x")
    if isinstance(error, TransportError):
        error.__cause__ = OSError(errno.ENOMEM, "none left")

    def fail() -> None:
        seen.append("failed")
        raise error

    def signalled() -> None:
        seen.append("signal")
        os.kill(os.getpid(), signal.SIGUSR2)
        fail()

    told: list[Exception] = []
    with Loop(told.append) as loop:
        loop.on_signal(signal.SIGUSR1, signalled)
        loop.on_signal(signal.SIGUSR2, loop.stop)
        loop.on_readable(reader, fail)
        loop.call_later(0, fail)
        loop.call_later(0, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        loop.run()
    assert seen == ["failed", "failed", "signal", "failed", "failed"]
    assert told == [error] * 4
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "a bug"), KeyError("a bug")])
def test_any_other_error_ends_the_loop(error: Exception) -> None:
    def fail() -> None:
        raise error

    told: list[Exception] = []
    with Loop(told.append) as loop:
        loop.call_later(0, fail)
        with pytest.raises(type(error)):
            loop.run()
    assert told == []
