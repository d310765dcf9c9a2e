# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The demo (`make demo`): a real msgd and real processes message each other before the user's eyes.

It works in a scratch directory and leaves neither a process nor a file behind, however it ends.  It never sleeps: each
step waits for the event that it needs, with a time limit that only a hanging process reaches.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from msgd.config import Config
from msgd.errors import ConfigError
from msgd.messaging import Messaging
from msgd.presence.socket_path import check_socket_directory
from msgd.programs import cli
from msgd.results import SendStatus
from msgd.tools.demo.worker import BURST, ECHO, ECHOED, REPORT, REPORTED, SLEEP

PROGRAM = "demo"

_WORKERS = 3
_BIG = 1 << 20
_BURST = 1000
_STEP_TIMEOUT = 10.0
"""Seconds for what takes a fraction of one: a machine may be busy."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_DIM, _BOLD, _GREEN, _RED, _PLAIN = "\033[2m", "\033[1m", "\033[32m", "\033[31m", "\033[0m"


class DemoFailed(Exception):
    """Something did not go as it must; the text says what."""


def main() -> int:
    """Run the demo; the exit status tells whether all went well."""
    return cli.run(PROGRAM, _run)


def _run() -> int:
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    out = _Output()
    began = time.monotonic()
    try:
        with _scratch_directory(out) as scratch, _Processes() as processes:
            _Demo(out, scratch, processes).run()
    except (DemoFailed, subprocess.TimeoutExpired) as error:
        out.failure(str(error))
        return cli.EXIT_FAILURE
    out.success(f"All well, in {time.monotonic() - began:.1f} seconds; nothing is left behind.")
    return 0


def _end(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A signal that ends us does so at the end of the block: a process that has been started is known by then."""
    came: list[int] = []
    former = {signum: signal.signal(signum, lambda number, frame: came.append(number)) for signum in _ENDING}
    try:
        yield
    finally:
        for held, handler in former.items():
            signal.signal(held, handler)
    for signum in came:
        signal.raise_signal(signum)


class _Output:
    """Prints what happens, coloured on a terminal."""

    def __init__(self) -> None:
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._step = 0

    def _print(self, colour: str, text: str) -> None:
        print(f"{colour}{text}{_PLAIN}" if self._coloured else text, flush=True)

    def step(self, text: str) -> None:
        """What is done next."""
        self._step += 1
        self._print(_BOLD, f"{self._step}. {text}")

    def detail(self, text: str) -> None:
        """What came of it, line by line."""
        for line in text.splitlines():
            self._print(_DIM, f"   {line}")

    def success(self, text: str) -> None:
        """The good end."""
        self._print(_GREEN, text)

    def failure(self, text: str) -> None:
        """The bad end."""
        self._print(_RED, f"FAILED: {text}")


@contextlib.contextmanager
def _scratch_directory(out: _Output) -> Iterator[Path]:
    """A directory of our own under ./build, or in the system's place where that has too long a path; then removed."""
    build = Path("build").absolute()
    above = build / "demo"
    try:
        check_socket_directory(str(above / "12345678" / "lock" / "msg.sock"))
        if not build.is_dir():
            raise ConfigError(f"there is no {build}")
        above.mkdir(exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=above, prefix=""))
    except (ConfigError, OSError) as error:
        scratch = Path(tempfile.mkdtemp(prefix="msgd"))
        out.detail(f"The scratch directory is {scratch}, since {error}")
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)
        if scratch.parent == above:
            with contextlib.suppress(OSError):  # another demo is running
                above.rmdir()


class _Processes:
    """The processes of the demo, ended at the latest when it is left as a context manager."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *args: object) -> None:
        for signum in _ENDING:
            signal.signal(signum, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave half of them
        for process in self.all:
            process.terminate()
        for process in self.all:
            try:
                process.wait(_STEP_TIMEOUT)
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


def _await_line(process: subprocess.Popen[bytes], wanted: str) -> str:
    """Read the process's output up to a line that holds `wanted`, and return that line."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    output = ""
    deadline = time.monotonic() + _STEP_TIMEOUT
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        line = process.stdout.readline().decode(errors="replace")
        if wanted in line:
            return line.rstrip()
        if not line:
            raise DemoFailed(f"process {process.pid} ended without saying {wanted!r}: {output or 'it said nothing'}")
        output += line
    raise DemoFailed(f"process {process.pid} has not said {wanted!r} within {_STEP_TIMEOUT:g} seconds: {output}")


class _Demo:
    def __init__(self, out: _Output, scratch: Path, processes: _Processes) -> None:
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
        self._out.detail(_await_line(msgd, "is ready"))

    def _start_workers(self) -> list[subprocess.Popen[bytes]]:
        self._out.step(f"Start {_WORKERS} worker processes that use the library")
        workers = [self._processes.start("msgd.tools.demo.worker", str(self._smb_conf)) for _ in range(_WORKERS)]
        for worker in workers:
            _await_line(worker, "ready")
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
            answer = messaging.request(pid, ECHO, data, ECHOED, timeout=_STEP_TIMEOUT)
            elapsed = time.perf_counter() - began
        there, back = hashlib.sha256(data).hexdigest(), hashlib.sha256(answer.data).hexdigest()
        self._out.detail(f"SHA-256 {there[:16]}... went, {back[:16]}... came, in {elapsed * 1000:.0f} ms.")
        if there != back:
            raise DemoFailed("what came back is not what was sent")

    def _send_burst(self, worker: subprocess.Popen[bytes]) -> None:
        self._out.step(f"Send {_BURST} messages to pid {worker.pid} while it reads none")
        with Messaging(self._config) as messaging:
            messaging.send(worker.pid, SLEEP)
            _await_line(worker, "asleep")
            began = time.perf_counter()
            statuses = Counter(messaging.send(worker.pid, BURST, str(number).encode()) for number in range(_BURST))
            elapsed = time.perf_counter() - began
            self._out.detail(
                f"It sleeps. All were accepted in {elapsed * 1000:.0f} ms: {statuses[SendStatus.SENT]} are in its"
                f" queue, {statuses[SendStatus.QUEUED]} wait in the sender."
            )
            _input_of(worker).write(b"wake up\n")
            answer = messaging.request(worker.pid, REPORT, b"", REPORTED, timeout=_STEP_TIMEOUT)
        numbers = json.loads(answer.data)
        in_order = numbers == list(range(_BURST))
        self._out.detail(f"It woke up and got {len(numbers)} messages, {'in order' if in_order else 'NOT in order'}.")
        if not in_order:
            raise DemoFailed("messages were lost, doubled or out of order")

    def _stop_all(self) -> None:
        self._out.step("Stop them all: msgcontrol all shutdown")
        self._msgcontrol("all", "shutdown")
        for process in self._processes.all:
            if process.wait(_STEP_TIMEOUT) != 0:
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
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * _STEP_TIMEOUT, check=False)
        if done.returncode != 0:
            raise DemoFailed(f"msgcontrol {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout


def _input_of(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin
