# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The floor of a broadcast: a C program over bare sockets."""

from __future__ import annotations

from pathlib import Path

from msgd.bench.broadcast.base import Broadcaster, BroadcastLoad, Sent
from msgd.bench.peers.programs import compile_program, compiler, run_program
from msgd.bench.results import Outcome
from msgd.bench.workers import Team

_SOURCE = Path(__file__).with_name("floor.c")


class BroadcastFloor(Broadcaster):
    """A C program that sends each message to each listener over a socket pair.  Its listeners sleep when idle."""

    name = "C, seqpacket"
    note = "a C loop over bare socket pairs; the listeners sleep"

    def missing(self) -> str:
        return "" if compiler() else "there is no C compiler"

    def run(self, team: Team, directory: Path, load: BroadcastLoad) -> Outcome:
        program = compile_program(_SOURCE, directory)
        arguments = [str(value) for value in (load.listeners, load.window, len(load.data), load.seconds, *team.cpus)]
        broadcasts, received, seconds, cpu = run_program([program, *arguments], load.seconds + load.patience).split()
        return Sent(int(broadcasts), float(seconds), float(cpu)).outcome(load, int(received))
