# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The demo runs, explains its steps, and leaves nothing behind however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from msgd.tools.demo.processes import Processes
from tests.support.daemons import ENVIRONMENT, PATIENCE, Place, Running, end_process


def processes_naming(text: str) -> list[int]:
    """The pids of the processes whose command line contains the text."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if text.encode() in command:
            found.append(int(process.name))
    return found


def start_demo(cwd: Path) -> Running:
    return Running([sys.executable, "-m", "msgd.tools.demo"], cwd)


class StepByStep:
    """A demo that runs at most one line ahead of its reader, because its output pipe has room for one write."""

    def __init__(self, cwd: Path) -> None:
        self._output, writer = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1)
        command = [sys.executable, "-m", "msgd.tools.demo"]
        self._process = subprocess.Popen(command, cwd=cwd, stdout=writer, stderr=writer, env=ENVIRONMENT)
        os.close(writer)
        self.output = ""

    def _read(self) -> str:
        """Return its next write; empty at the end."""
        assert select.select([self._output], [], [], PATIENCE)[0], f"it prints nothing more: {self.output}"
        text = os.read(self._output, 1 << 16).decode()
        self.output += text
        return text

    def await_line(self, beginning: str) -> None:
        while not (text := self._read()).startswith(beginning):
            assert text, f"it has not printed {beginning!r}: {self.output}"

    def end(self, signum: signal.Signals) -> int:
        """Send it a signal and return its exit status."""
        self._process.send_signal(signum)
        while self._read():
            pass
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        """End the demo and its processes if they are still running."""
        self._process.terminate()
        os.close(self._output)
        self._process.wait(PATIENCE)


def test_demo(place: Place) -> None:
    (place.directory / "build").mkdir()
    demo = start_demo(place.directory)
    try:
        assert demo.wait() == 0, demo.output
    finally:
        demo.kill()
    assert demo.output.count("PONG from pid") == 4
    assert "It woke up and received 1000 messages, in order." in demo.output
    assert "All steps succeeded" in demo.output
    assert "\033" not in demo.output
    assert list((place.directory / "build").iterdir()) == []
    assert processes_naming(str(place.directory)) == []


@pytest.mark.parametrize("build", ["", "b" * 90 + "/build"])
def test_scratch_directory_elsewhere(place: Place, build: str) -> None:
    """There is no build directory, or its path is too long for a socket."""
    cwd = (place.directory / build).parent if build else place.directory
    if build:
        (place.directory / build).mkdir(parents=True)
    demo = start_demo(cwd)
    try:
        assert demo.wait() == 0, demo.output
    finally:
        demo.kill()
    printed = re.search(r"The scratch directory is (/\S+), because ", demo.output)
    assert printed is not None
    assert not Path(printed[1]).exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["1. ", "2. ", "3. ", "5. "])
def test_interrupted(place: Place, signum: signal.Signals, moment: str) -> None:
    (place.directory / "build").mkdir()
    with contextlib.closing(StepByStep(place.directory)) as demo:
        demo.await_line(moment)
        assert demo.end(signum) == 128 + signum, demo.output
    assert "Traceback" not in demo.output
    for pid in processes_naming(str(place.directory)):
        end_process(pid, None)  # a msgcontrol whose demo was killed
    assert list((place.directory / "build").iterdir()) == []
    assert not os.path.exists(place.directory / "build" / "demo")


def test_process_being_started_does_not_outlive_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def interrupted(command: list[str], **arguments: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = real([sys.executable, "-c", "input()"], **arguments)
        signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    former = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(KeyboardInterrupt), Processes() as processes:
            processes.start("anything")
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
    (process,) = processes.all
    assert process.poll() is not None
