"""The demo runs, tells what it does, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.daemon.daemons import Place, Running, end_process


def processes_naming(text: str) -> list[int]:
    """The pids of processes with the text in their command line."""
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


def test_runs(place: Place) -> None:
    (place.directory / "build").mkdir()
    demo = start_demo(place.directory)
    try:
        assert demo.wait() == 0, demo.output
    finally:
        demo.kill()
    assert demo.output.count("PONG from pid") == 4
    assert "It woke up and got 1000 messages, in order." in demo.output
    assert "All well" in demo.output
    assert "\033" not in demo.output
    assert list((place.directory / "build").iterdir()) == []
    assert processes_naming(str(place.directory)) == []


@pytest.mark.parametrize("build", ["", "b" * 90 + "/build"])
def test_runs_elsewhere_where_there_is_no_room(place: Place, build: str) -> None:
    """Without a build directory, or in one whose path is too long for sockets."""
    cwd = (place.directory / build).parent if build else place.directory
    if build:
        (place.directory / build).mkdir(parents=True)
    demo = start_demo(cwd)
    try:
        assert demo.wait() == 0, demo.output
    finally:
        demo.kill()
    told = re.search(r"The scratch directory is (/\S+), since ", demo.output)
    assert told is not None
    assert not Path(told[1]).exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["1. ", "2. ", "3. ", "5. "])
def test_interrupted(place: Place, signum: signal.Signals, moment: str) -> None:
    (place.directory / "build").mkdir()
    demo = start_demo(place.directory)
    try:
        demo.await_line(moment)
        demo.signal(signum)
        assert demo.wait() == 128 + signum, demo.output
    finally:
        demo.kill()
    assert "Traceback" not in demo.output
    for pid in processes_naming(str(place.directory)):
        end_process(pid, None)  # msgcontrol, which Popen has killed with the demo
    assert list((place.directory / "build").iterdir()) == []
    assert not os.path.exists(place.directory / "build" / "demo")
