# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Start the demo's processes, wait for their output, and end them however the demo ends."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from msgd.programs.cli import ENDING_SIGNALS

STEP_TIMEOUT = 10.0
"""Seconds that a step may take.  It takes a fraction of one unless the machine is very busy."""


class DemoFailed(Exception):
    """A step did not have the expected result; the text says what happened."""


class Processes:
    """The processes of the demo.  Those that still run at the end of the `with` block are ended there."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *args: object) -> None:
        for signum in ENDING_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)  # a second Ctrl-C must not stop the clean-up
        for process in self.all:
            process.terminate()
        for process in self.all:
            try:
                process.wait(STEP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run a module of the package, in its own session so that Ctrl-C reaches only the demo."""
        with _ending_signals_deferred():
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.all.append(process)
        return process


def await_line(process: subprocess.Popen[bytes], wanted: str) -> str:
    """Read the process's output up to a line that contains `wanted`, and return that line.  Raises DemoFailed."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    output = ""
    deadline = time.monotonic() + STEP_TIMEOUT
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        line = process.stdout.readline().decode(errors="replace")
        if wanted in line:
            return line.rstrip()
        if not line:
            raise DemoFailed(f"process {process.pid} ended without printing {wanted!r}; its output: {output or 'none'}")
        output += line
    raise DemoFailed(
        f"process {process.pid} has not printed {wanted!r} in {STEP_TIMEOUT:g} seconds; its output: {output}"
    )


@contextlib.contextmanager
def _ending_signals_deferred() -> Iterator[None]:
    """Defer the signals that end the demo to the end of the block.

    A process that is started in the block is recorded by then, so that it is ended as well.
    """
    received: list[int] = []
    former = {signum: signal.signal(signum, lambda number, frame: received.append(number)) for signum in ENDING_SIGNALS}
    try:
        yield
    finally:
        for deferred, handler in former.items():
            signal.signal(deferred, handler)
    for signum in received:
        signal.raise_signal(signum)
