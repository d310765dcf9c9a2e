# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The worker processes that measure: forked, pinned to a CPU, controlled over a pipe, and ended with their team.

Rule 1. The process that runs msgbench never measures and loads none of the measured libraries.  Their threads and
        locks exist only in the workers.
Rule 2. Nothing waits without a limit.  A worker that does not report in time is killed, and the run has failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self

from msgd.errors import MsgdError

P = ParamSpec("P")
Tick = Callable[[], None]

_PR_SET_PDEATHSIG = 1
_TICK = 0.1
"""Seconds between two updates of the progress display while a worker is awaited."""


class RunFailed(Exception):
    """The run has failed: a worker reported an error, died, or did not report in time.  The text says which."""


class _Failure(NamedTuple):
    """What a worker sends when its body raises."""

    text: str


class Worker:
    """A forked process that runs `body(channel, *arguments)`."""

    def __init__(self, name: str, pid: int, channel: Connection, tick: Tick) -> None:
        self.name = name
        self.pid = pid
        self.channel = channel
        self._tick = tick
        self._ended = False

    def send(self, value: object) -> None:
        """Send the worker an object.  Raises RunFailed if the worker has died."""
        try:
            self.channel.send(value)
        except OSError:
            raise RunFailed(f"{self.name} has died ({self._status()})") from None

    def receive(self, within: float) -> Any:
        """Return the next object that the worker sends.

        Raises RunFailed if its body raises, if it dies, or if it sends nothing within `within` seconds.
        """
        deadline = time.monotonic() + within
        while not self.channel.poll(max(0.0, min(_TICK, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise RunFailed(f"{self.name} has not finished within {within:.3g} s: it waits for a message")
            self._tick()
        try:
            value = self.channel.recv()
        except (EOFError, OSError):
            raise RunFailed(f"{self.name} has died ({self._status()})") from None
        if isinstance(value, _Failure):
            raise RunFailed(f"{self.name}: {value.text}")
        return value

    def kill(self) -> None:
        """Kill the worker with SIGKILL and reap it."""
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
            self._status()
        self.channel.close()

    def _status(self) -> str:
        if self._ended:
            return "ended"
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._ended = True
        return f"signal {-status}" if status < 0 else f"exit status {status}"


def end_all(workers: Collection[Worker], within: float) -> None:
    """Tell workers that wait for an object to end.  Return when their bodies have; raise RunFailed if one is late."""
    for worker in workers:
        worker.send("end")
    for worker in workers:
        worker.receive(within)


class Team:
    """The workers of one run.  They are killed at the end of the `with` block.

    `cpus` are the CPUs to which the workers are bound in turn; if there are none, they are not bound.  `tick` is called
    while a worker is awaited.
    """

    def __init__(self, cpus: Sequence[int] = (), tick: Tick = lambda: None) -> None:
        self.cpus = cpus
        self._tick = tick
        self._started = 0
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()

    def watch(self, seconds: float) -> None:
        """Let the workers run for this many seconds.  Raises RunFailed as soon as one fails or sends anything."""
        deadline = time.monotonic() + seconds
        channels = {worker.channel: worker for worker in self.workers if not worker.channel.closed}
        while (left := deadline - time.monotonic()) > 0:
            for channel in wait(list(channels), min(left, _TICK)):
                worker = channels[channel]  # type: ignore[index]  # wait() is typed for sockets and numbers as well
                raise RunFailed(f"{worker.name} unexpectedly sent {worker.receive(0)!r}")
            self._tick()

    def start(
        self,
        name: str,
        body: Callable[Concatenate[Connection, P], object],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> Worker:
        """Fork a process that runs `body(channel, *arguments)`.  What the body returns is the last object it sends."""
        parent_end, child_end = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        cpu = self.cpus[self._started % len(self.cpus)] if self.cpus else None
        self._started += 1
        pid = _fork()
        if pid == 0:
            parent_end.close()
            for other in self.workers:  # so that each pipe closes when its worker ends
                other.channel.close()
            _run_worker(child_end, parent, cpu, lambda: body(child_end, *arguments, **keywords))
        child_end.close()
        worker = Worker(name, pid, parent_end, self._tick)
        self.workers.append(worker)
        return worker


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # only a test runner has threads, and they are idle
        return os.fork()


def _run_worker(channel: Connection, parent: int, cpu: int | None, body: Callable[[], object]) -> None:
    """Run the body in the forked process, report what it returns or raises, and exit."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # msgbench handles Ctrl-C and ends its workers
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        gc.freeze()
        channel.send(body())
    except RunFailed as error:
        _tell_failure(channel, str(error))
    except (MsgdError, OSError) as error:
        _tell_failure(channel, f"{type(error).__name__}: {error}")
    except BaseException:  # noqa: BLE001  # the parent reports it, whatever it is
        _tell_failure(channel, traceback.format_exc())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _tell_failure(channel: Connection, text: str) -> None:
    with contextlib.suppress(OSError):  # the parent has died
        channel.send(_Failure(text))
