# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The scenes of the demo: start a daemon and workers, ping them, send much data, send many messages, stop them all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import IO

from msgd.config import Config
from msgd.messaging import Messaging
from msgd.presence.private_lock import PRIVATE_FILE
from msgd.results import SendStatus
from msgd.tools.demo.output import Output
from msgd.tools.demo.processes import STEP_TIMEOUT, DemoFailed, Processes, await_line
from msgd.tools.demo.worker import BURST, ECHO, ECHOED, REPORT, REPORTED, SLEEP

_WORKERS = 3
_LARGE_SIZE = 1 << 20
"""Bytes of the large message."""

_BURST_SIZE = 1000
"""Messages sent to the worker that does not read."""


class Scenes:
    """Plays the scenes, in a scratch directory that gets its own smb.conf."""

    def __init__(self, out: Output, scratch: Path, processes: Processes) -> None:
        self._out = out
        self._processes = processes
        self._smb_conf = scratch / "smb.conf"
        places = {"lock directory": "lock", "private dir": "private", "pid directory": "pid"}
        settings = "".join(f"    {name} = {scratch / directory}\n" for name, directory in places.items())
        self._smb_conf.write_text(f"[global]\n{settings}".replace("%", "%%"))
        self._config = Config.load(self._smb_conf)

    def run(self) -> None:
        """Play all the scenes.  Raises DemoFailed at the first that does not have the expected result."""
        self._start_msgd()
        workers = self._start_workers()
        self._ping_all()
        self._send_large(workers[0].pid)
        self._send_burst(workers[1])
        self._stop_all()

    def _start_msgd(self) -> None:
        self._out.step("Start the daemon: msgd -F -d 3")
        msgd = self._processes.start("msgd.daemon", "-F", "-d", "3", "-s", str(self._smb_conf))
        self._out.detail(await_line(msgd, "is ready"))

    def _start_workers(self) -> list[subprocess.Popen[bytes]]:
        self._out.step(f"Start {_WORKERS} worker processes that use the library")
        workers = [self._processes.start("msgd.tools.demo.worker", str(self._smb_conf)) for _ in range(_WORKERS)]
        for worker in workers:
            await_line(worker, "ready")
        self._out.detail(f"Their pids are {', '.join(str(worker.pid) for worker in workers)}.")
        return workers

    def _ping_all(self) -> None:
        self._out.step("Ping them all: msgcontrol all ping")
        answers = self._msgcontrol("all", "ping")
        self._out.detail(answers)
        wanted = {f"PONG from pid {process.pid}" for process in self._processes.all}
        if set(answers.splitlines()) != wanted:
            raise DemoFailed(f"the answers should have been {sorted(wanted)}")

    def _send_large(self, pid: int) -> None:
        self._out.step(f"Send {_LARGE_SIZE} bytes to pid {pid}, which sends them back")
        data = os.urandom(_LARGE_SIZE)
        with Messaging(self._config) as messaging:
            began = time.perf_counter()
            answer = messaging.request(pid, ECHO, data, ECHOED, timeout=STEP_TIMEOUT)
            elapsed = time.perf_counter() - began
        sent, received = hashlib.sha256(data).hexdigest(), hashlib.sha256(answer.data).hexdigest()
        self._out.detail(f"SHA-256 {sent[:16]}... was sent, {received[:16]}... came back, in {elapsed * 1000:.0f} ms.")
        if sent != received:
            raise DemoFailed("the data that came back differs from the data sent")

    def _send_burst(self, worker: subprocess.Popen[bytes]) -> None:
        self._out.step(f"Send {_BURST_SIZE} messages to pid {worker.pid} while it is not reading")
        with Messaging(self._config) as messaging:
            messaging.send(worker.pid, SLEEP)
            await_line(worker, "asleep")
            began = time.perf_counter()
            statuses = Counter(messaging.send(worker.pid, BURST, str(number).encode()) for number in range(_BURST_SIZE))
            elapsed = time.perf_counter() - began
            self._out.detail(
                f"It is asleep. All messages were accepted in {elapsed * 1000:.0f} ms:"
                f" {statuses[SendStatus.SENT]} are in its queue, {statuses[SendStatus.QUEUED]} in the sender's backlog."
            )
            _input_of(worker).write(b"wake up\n")
            answer = messaging.request(worker.pid, REPORT, b"", REPORTED, timeout=STEP_TIMEOUT)
        numbers = json.loads(answer.data)
        in_order = numbers == list(range(_BURST_SIZE))
        order = "in order" if in_order else "NOT in order"
        self._out.detail(f"It woke up and received {len(numbers)} messages, {order}.")
        if not in_order:
            raise DemoFailed("messages were lost, duplicated or reordered")

    def _stop_all(self) -> None:
        self._out.step("Stop them all: msgcontrol all shutdown")
        self._msgcontrol("all", "shutdown")
        for process in self._processes.all:
            if process.wait(STEP_TIMEOUT) != 0:
                raise DemoFailed(f"process {process.pid} ended with exit status {process.returncode}")
        left = [
            str(path)
            for directory in (f"{self._config.lock_directory}/msg.lock", self._config.socket_directory)
            for path in Path(directory).iterdir()
        ]
        left += (str(path) for path in Path(self._config.pid_directory).iterdir() if path.name != PRIVATE_FILE)
        if left:
            raise DemoFailed(f"files were left behind: {', '.join(left)}")
        self._out.detail("They have exited and removed their sockets, lock files and pid file.")

    def _msgcontrol(self, *arguments: str) -> str:
        """Run msgcontrol and return its output.  Raises DemoFailed if it fails."""
        command = [sys.executable, "-m", "msgd.tools.msgcontrol", "-s", str(self._smb_conf), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * STEP_TIMEOUT, check=False)
        if done.returncode != 0:
            raise DemoFailed(f"msgcontrol {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout


def _input_of(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin
