# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Start the demo's processes, read their output, and end them however the demo ends."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

STEP_TIMEOUT = 10.0
"""Seconds for what takes a fraction of one: a machine may be busy."""

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoFailed(Exception):
    """Something did not go as it must; the text says what."""


class Processes:
    """The processes of the demo, ended at the latest when it is left as a context manager."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *args: object) -> None:
        for signum in ENDING_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave half of them
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
        """Start a module of the package, in a session of its own: a Ctrl-C is ours to handle."""
        with _undisturbed():
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
    """Read the process's output up to a line that holds `wanted`, and return that line."""
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
            raise DemoFailed(f"process {process.pid} ended without saying {wanted!r}: {output or 'it said nothing'}")
        output += line
    raise DemoFailed(f"process {process.pid} has not said {wanted!r} within {STEP_TIMEOUT:g} seconds: {output}")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A signal that ends us does so at the end of the block: a process that has been started is known by then."""
    came: list[int] = []
    former = {signum: signal.signal(signum, lambda number, frame: came.append(number)) for signum in ENDING_SIGNALS}
    try:
        yield
    finally:
        for held, handler in former.items():
            signal.signal(held, handler)
    for signum in came:
        signal.raise_signal(signum)
