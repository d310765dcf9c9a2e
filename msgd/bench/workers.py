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
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self

from msgd.errors import MsgdError

P = ParamSpec("P")
Tick = Callable[[], None]

_PR_SET_PDEATHSIG = 1
_TICK = 0.1
"""Seconds between two ticks of the progress while a worker is awaited."""


class RunFailed(Exception):
    """The run is no good: a worker says so, has died, or has said nothing for too long.  The text says which."""


class _Raised(NamedTuple):
    text: str


class Worker:
    """A forked process that runs `body(channel, *arguments)`."""

    def __init__(self, name: str, pid: int, channel: Connection, tick: Tick) -> None:
        self.name = name
        self.pid = pid
        self.channel = channel
        self._tick = tick
        self._ended = False

    def tell(self, thing: object) -> None:
        """Send it an object."""
        try:
            self.channel.send(thing)
        except OSError:
            raise RunFailed(f"{self.name} has died ({self._status()})") from None

    def hear(self, within: float) -> Any:
        """The next object it sends; RunFailed if it raises or dies, or says nothing within so many seconds."""
        deadline = time.monotonic() + within
        while not self.channel.poll(max(0.0, min(_TICK, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise RunFailed(f"{self.name} has not finished within {within:.3g} s: it waits for a message")
            self._tick()
        try:
            thing = self.channel.recv()
        except (EOFError, OSError):
            raise RunFailed(f"{self.name} has died ({self._status()})") from None
        if isinstance(thing, _Raised):
            raise RunFailed(f"{self.name}: {thing.text}")
        return thing

    def kill(self) -> None:
        """SIGKILL it and wait until it is gone."""
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


class Team:
    """The workers of one run; leaving it as a context manager ends them all.

    `cpus`: the CPUs that workers are bound to, in turn; none means unbound.  `tick` is called while one is awaited.
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
        """Let them work for so many seconds; RunFailed as soon as one fails, or says something."""
        deadline = time.monotonic() + seconds
        channels = {worker.channel: worker for worker in self.workers if not worker.channel.closed}
        while (left := deadline - time.monotonic()) > 0:
            for channel in wait(list(channels), min(left, _TICK)):
                worker = channels[channel]  # type: ignore[index]  # it waits for sockets and numbers as well
                raise RunFailed(f"{worker.name} said {worker.hear(0)!r}")
            self._tick()

    def start(
        self,
        name: str,
        body: Callable[Concatenate[Connection, P], object],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> Worker:
        """Fork a process that runs `body(channel, *arguments)`; what it returns is the last thing heard of it."""
        ours, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        cpu = self.cpus[self._started % len(self.cpus)] if self.cpus else None
        self._started += 1
        pid = _fork()
        if pid == 0:
            ours.close()
            for other in self.workers:  # so that their end of the pipe is closed when they are
                other.channel.close()
            _live(theirs, parent, cpu, lambda: body(theirs, *arguments, **keywords))
        theirs.close()
        worker = Worker(name, pid, ours, self._tick)
        self.workers.append(worker)
        return worker


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of a test runner only wait; none is ours
        return os.fork()


def _live(channel: Connection, parent: int, cpu: int | None, body: Callable[[], object]) -> None:
    """A worker's life, from fork to exit."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is msgbench's to handle, which ends us
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
    with contextlib.suppress(OSError):  # the parent is gone: nobody is left to tell
        channel.send(_Raised(text))
