# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The scenes of the demo."""

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
from msgd.results import SendStatus
from msgd.tools.demo.output import Output
from msgd.tools.demo.processes import STEP_TIMEOUT, DemoFailed, Processes, await_line
from msgd.tools.demo.worker import BURST, ECHO, ECHOED, REPORT, REPORTED, SLEEP

_WORKERS = 3
_BIG = 1 << 20
_BURST = 1000


class Scenes:
    def __init__(self, out: Output, scratch: Path, processes: Processes) -> None:
        self._out = out
        self._processes = processes
        self._smb_conf = scratch / "smb.conf"
        names = {"lock directory": "lock", "private dir": "private", "pid directory": "pid"}
        settings = "".join(f"    {name} = {scratch / directory}\n" for name, directory in names.items())
        self._smb_conf.write_text(f"[global]\n{settings}".replace("%", "%%"))
        self._config = Config.load(self._smb_conf)

    def run(self) -> None:
        self._start_msgd()
        workers = self._start_workers()
        self._ping_all()
        self._send_big(workers[0].pid)
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
        self._out.detail(f"They are pids {', '.join(str(worker.pid) for worker in workers)}.")
        return workers

    def _ping_all(self) -> None:
        self._out.step("Ping them all: msgcontrol all ping")
        answers = self._msgcontrol("all", "ping")
        self._out.detail(answers)
        wanted = {f"PONG from pid {process.pid}" for process in self._processes.all}
        if set(answers.splitlines()) != wanted:
            raise DemoFailed(f"that is not an answer from each of {sorted(wanted)}")

    def _send_big(self, pid: int) -> None:
        self._out.step(f"Send {_BIG} bytes to pid {pid}, and get them back")
        data = os.urandom(_BIG)
        with Messaging(self._config) as messaging:
            began = time.perf_counter()
            answer = messaging.request(pid, ECHO, data, ECHOED, timeout=STEP_TIMEOUT)
            elapsed = time.perf_counter() - began
        there, back = hashlib.sha256(data).hexdigest(), hashlib.sha256(answer.data).hexdigest()
        self._out.detail(f"SHA-256 {there[:16]}... went, {back[:16]}... came, in {elapsed * 1000:.0f} ms.")
        if there != back:
            raise DemoFailed("what came back is not what was sent")

    def _send_burst(self, worker: subprocess.Popen[bytes]) -> None:
        self._out.step(f"Send {_BURST} messages to pid {worker.pid} while it reads none")
        with Messaging(self._config) as messaging:
            messaging.send(worker.pid, SLEEP)
            await_line(worker, "asleep")
            began = time.perf_counter()
            statuses = Counter(messaging.send(worker.pid, BURST, str(number).encode()) for number in range(_BURST))
            elapsed = time.perf_counter() - began
            self._out.detail(
                f"It sleeps. All were accepted in {elapsed * 1000:.0f} ms: {statuses[SendStatus.SENT]} are in its"
                f" queue, {statuses[SendStatus.QUEUED]} wait in the sender."
            )
            _input_of(worker).write(b"wake up\n")
            answer = messaging.request(worker.pid, REPORT, b"", REPORTED, timeout=STEP_TIMEOUT)
        numbers = json.loads(answer.data)
        in_order = numbers == list(range(_BURST))
        self._out.detail(f"It woke up and got {len(numbers)} messages, {'in order' if in_order else 'NOT in order'}.")
        if not in_order:
            raise DemoFailed("messages were lost, doubled or out of order")

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
        left += map(str, Path(self._config.pid_directory).iterdir())
        if left:
            raise DemoFailed(f"they left behind: {', '.join(left)}")
        self._out.detail("They have ended, and taken their sockets, lock files and pid file with them.")

    def _msgcontrol(self, *arguments: str) -> str:
        """Run msgcontrol, which must succeed, and return what it printed."""
        command = [sys.executable, "-m", "msgd.tools.msgcontrol", "-s", str(self._smb_conf), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * STEP_TIMEOUT, check=False)
        if done.returncode != 0:
            raise DemoFailed(f"msgcontrol {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout


def _input_of(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin
