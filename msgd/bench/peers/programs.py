# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Peers that run as separate programs: a C loop over plain sockets, and Samba's own LOCAL-MESSAGING."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from array import array
from functools import cache
from pathlib import Path
from typing import ClassVar

from msgd.bench.exchange import RATE, Load, Tally
from msgd.bench.peers.base import START_TIMEOUT, Peer
from msgd.bench.results import Outcome
from msgd.bench.workers import RunFailed, Team

_SOURCE = Path(__file__).with_name("floor.c")
_COMPILERS = ("cc", "gcc", "clang")
_COMPILING = 60.0


class Floor(Peer):
    """A C program that pings over bare sockets, without a messaging format and without Python.

    It sleeps when there is nothing to read.  Each run compiles it in the run's directory before the clock starts.
    """

    kind: ClassVar[str]

    def missing(self) -> str:
        return "" if compiler() else "there is no C compiler"

    def run(self, team: Team, directory: Path, load: Load) -> Outcome:
        program = compile_program(_SOURCE, directory)
        cpus = [str(team.cpus[number % len(team.cpus)]) if team.cpus else "-1" for number in range(2)]
        arguments = [self.kind, str(directory), str(load.seconds), str(load.window), str(len(load.messages[0])), *cpus]
        times = directory / "times"
        if load.timed:
            arguments.append(str(times))
        output = run_program([program, *arguments], load.seconds + load.patience)
        sent, received, seconds, cpu = output.split()
        return Tally(int(sent), int(received), float(seconds), float(cpu), _doubles(times)).outcome()


class DatagramFloor(Floor):
    """The C program over AF_UNIX datagrams."""

    name = "C, datagrams"
    kind = "dgram"
    note = "a C loop over bare AF_UNIX datagrams"


class StreamFloor(Floor):
    """The C program over an AF_UNIX stream."""

    name = "C, stream"
    kind = "stream"
    note = "a C loop over a bare AF_UNIX stream"


class Smbtorture(Peer):
    """Samba's own LOCAL-MESSAGING, in one process.  It takes whole seconds and has a fixed window."""

    name = "smbtorture"
    note = "Samba's local.messaging.ping_speed: one process, window 20"

    def missing(self) -> str:
        return "" if shutil.which("smbtorture") else "smbtorture is not installed (Debian: samba-testsuite)"

    def run(self, team: Team, directory: Path, load: Load) -> Outcome:
        seconds = max(1, round(load.seconds))
        places = ("lock directory", "private dir", "state directory", "cache directory", "pid directory")
        command = ["smbtorture", "//localhost/none", "-N", "-t", str(seconds), f"--configfile={os.devnull}"]
        command += [f"--option={place}={directory}" for place in places]
        output = run_program([*command, "local.messaging.ping_speed"], seconds + load.patience)
        rate = re.search(r"ping rate of (\d+)", output)
        if rate is None or "success: ping_speed" not in output:
            return Outcome(failure=f"smbtorture failed: {(output.split(chr(10)) or [''])[-1]}")
        return Outcome({RATE: float(rate[1])})


def _doubles(path: Path) -> array[float]:
    """The numbers that a C program has written into a file; none if there is no file."""
    return array("d", path.read_bytes() if path.exists() else b"")


@cache
def compiler() -> str | None:
    """The name of the C compiler; None if there is none."""
    return next((name for name in _COMPILERS if shutil.which(name)), None)


def compile_program(source: Path, directory: Path) -> str:
    """Compile a C program into this directory and return its path.  Raises RunFailed."""
    program = str(directory / source.stem)
    run_program([compiler() or _COMPILERS[0], "-O2", "-o", program, str(source)], _COMPILING)
    return program


def run_program(command: list[str], within: float) -> str:
    """Run a program and return its output.  Raises RunFailed if it fails or takes longer than `within` seconds.

    START_TIMEOUT is added to the time, because a program may be slow to start.
    """
    sys.stdout.flush()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=within + START_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{command[0]} has not finished within {within + START_TIMEOUT:.3g} s") from None
    if done.returncode != 0:
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        raise RunFailed(f"{command[0]} ended with status {done.returncode}: {last}")
    return done.stdout
