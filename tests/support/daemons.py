# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the tests of the programs share: a scratch place with a smb.conf, real processes in it, waiting for events."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgd.config import Config
from msgd.messaging import Messaging
from msgd.presence import Process
from msgd.presence.lock_file import read_process
from msgd.presence.pidfile import read_pid
from msgd.presence.private_lock import PRIVATE_FILE
from msgd.wire.message_types import MessageType

PATIENCE = 30.0
"""Seconds until a test gives up on an event that takes milliseconds."""

TREE = str(Path(__file__).resolve().parents[2])
ENVIRONMENT = os.environ | {"PYTHONPATH": TREE}

Finished = subprocess.CompletedProcess[str]


class Running:
    """A started process whose output (stdout and stderr in one) is waited for line by line."""

    def __init__(
        self,
        command: list[str],
        cwd: Path | None = None,
        environment: Mapping[str, str] = {},
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=ENVIRONMENT | dict(environment or {}),
            pass_fds=pass_fds,
        )
        self.pid = self._process.pid
        self.output = ""

    def await_line(self, wanted: str) -> str:
        """Read the output up to a line that holds `wanted`."""
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        deadline = time.monotonic() + PATIENCE
        while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            line = self._process.stdout.readline().decode()
            self.output += line
            if wanted in line:
                return line.rstrip("\n")
            assert line, f"it ended without saying {wanted!r}: {self.output}"
        raise AssertionError(f"it has not said {wanted!r}: {self.output}")

    def signal(self, signum: signal.Signals) -> None:
        self._process.send_signal(signum)

    def stop(self) -> None:
        """SIGSTOP it and wait until it has stopped."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def wait(self) -> int:
        """Wait for the end; the exit status.  What was said until then is in `output`."""
        assert self._process.stdout is not None
        status = self._process.wait(PATIENCE)
        os.set_blocking(self._process.stdout.fileno(), False)  # its children may go on, and have the pipe open
        while said := self._process.stdout.read(1 << 16):
            self.output += said.decode()
        return status

    def kill_alone(self) -> None:
        """kill -9, and its children go on."""
        self.signal(signal.SIGKILL)
        self.wait()

    def kill(self) -> None:
        """End it and its children at once, if it has not ended, and close its pipes."""
        if self._process.poll() is None:
            self.stop()  # from now on it forks no more
            for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                end_process(int(child), signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Place:
    """A scratch directory with a smb.conf; what is started in it has ended when the test has."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.smb_conf = directory / "smb.conf"
        self._running: list[Running] = []
        self.configure("log level = 3")
        self.config = Config.load(self.smb_conf)

    def configure(self, *lines: str) -> None:
        """Write the smb.conf: the directories, and these lines from line 5 on."""
        directories = (
            f"{name} = {self.directory}/{name.partition(' ')[0]}" for name in ("lock directory", "private dir")
        )
        text = "\n".join(("[global]", *directories, f"pid directory = {self.directory}/pid", *lines, ""))
        self.smb_conf.write_text(text)

    @property
    def pid_file(self) -> Path:
        return self.directory / "pid" / "msgd.pid"

    @property
    def gateway(self) -> str:
        return str(self.directory / "pid" / "msgd.sock")

    def daemon(self) -> int:
        """Start msgd as a daemon, which logs to where it is told; it is ready.  Its pid."""
        started = self.run_msgd("-D")
        assert started.returncode == 0, started.stderr
        pid = read_pid(str(self.pid_file.parent), "msgd")
        assert pid is not None
        return pid

    def files(self) -> set[str]:
        """The names in the rendezvous directories and the pid directory, but for msgd.lock, which stays."""
        directories = (self.directory / "lock" / "msg.lock", self.directory / "lock" / "msg.sock", self.pid_file.parent)
        found = {path.name for directory in directories if directory.exists() for path in directory.iterdir()}
        return found - {PRIVATE_FILE}

    def run(self, module: str, *arguments: str) -> Finished:
        """Run a program of the package to its end."""
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=ENVIRONMENT, cwd=self.directory, timeout=PATIENCE, check=False
        )

    def start(self, module: str, *arguments: str) -> Running:
        """Start a program of the package."""
        return self.keep(Running([sys.executable, "-m", module, *arguments], self.directory))

    def keep(self, running: Running) -> Running:
        """What was started ends with the test."""
        self._running.append(running)
        return running

    def msgd(self, *options: str) -> Running:
        """Start msgd in the foreground; it is ready."""
        msgd = self.start("msgd.daemon", "-F", "-s", str(self.smb_conf), *options)
        msgd.await_line("is ready")
        return msgd

    def run_msgd(self, *options: str) -> Finished:
        """Run msgd to its end, or with -D to the end of the invoking process."""
        return self.run("msgd.daemon", "-s", str(self.smb_conf), *options)

    def worker(self) -> Running:
        """Start a worker of the demo; it is ready."""
        worker = self.start("msgd.tools.demo.worker", str(self.smb_conf))
        worker.await_line("ready")
        return worker

    def msgcontrol(self, *arguments: str) -> Finished:
        return self.run("msgd.tools.msgcontrol", "-s", str(self.smb_conf), *arguments)

    def debuglevel(self, pid: int) -> bytes:
        """What the process answers when asked for its debug levels: it has handled everything sent before, too."""
        with Messaging(self.config) as messaging:
            return messaging.request(pid, MessageType.REQ_DEBUGLEVEL, b"", MessageType.DEBUGLEVEL, PATIENCE).data

    def number_of_children(self, pid: int) -> int:
        """What msgd says, having taken note of every child that has ended by now."""
        with Messaging(self.config) as messaging:
            answer = messaging.request(
                pid, MessageType.SMB_TELL_NUM_CHILDREN, b"", MessageType.SMB_NUM_CHILDREN, PATIENCE
            )
        return int.from_bytes(answer.data, "little")

    def send(self, pid: int, message_type: int, data: bytes = b"") -> None:
        with Messaging(self.config) as messaging:
            messaging.send(pid, message_type, data)

    def hangup(self, pid: int) -> None:
        """Send SIGHUP and return when it has been obeyed: it is, before a question that came after it is answered."""
        os.kill(pid, signal.SIGHUP)
        self.debuglevel(pid)

    @contextmanager
    def amid_a_dispatch(self, pid: int) -> Iterator[None]:
        """For the time of the block msgd is in the middle of a dispatch: it has read one message and no more.

        That one makes it read its smb.conf, which is a pipe in which there is nothing yet.
        """
        text = self.smb_conf.read_text()
        self.smb_conf.unlink()
        os.mkfifo(self.smb_conf)
        self.send(pid, MessageType.SMB_CONF_UPDATED)
        with open(self.smb_conf, "w") as pipe:  # waits for it to open the other end
            self.smb_conf.unlink()
            self.smb_conf.write_text(text)
            yield
            pipe.write(text)

    def end_everything(self) -> None:
        for running in self._running:
            running.kill()
        pid = read_pid(str(self.pid_file.parent), "msgd")
        if pid is not None:  # a daemon that a failed test has left
            end_process(pid, signal.SIGKILL)
        for process in self.processes():  # connection processes, which outlive their daemon
            end_process(process.pid, signal.SIGKILL)

    def processes(self) -> list[Process]:
        """The living processes of the directory, but for this one."""
        directory = self.directory / "lock" / "msg.lock"
        if not directory.exists():
            return []
        fd = os.open(directory, os.O_RDONLY)
        try:
            pids = [int(name) for name in os.listdir(fd)]
            found = [read_process(fd, pid) for pid in pids if pid != os.getpid()]
        finally:
            os.close(fd)
        return [process for process in found if process is not None]


@contextmanager
def scratch_place() -> Iterator[Place]:
    """A place with a short path, gone when the test is."""
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="m"))
    place = Place(directory)
    try:
        yield place
    finally:
        place.end_everything()
        shutil.rmtree(directory)


def end_process(pid: int, signum: int | None) -> None:
    """Wait for the end of a process, after sending it a signal if one is given."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if signum is not None:
            signal.pidfd_send_signal(pidfd, signum)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(PATIENCE * 1000), f"process {pid} has not ended"
    finally:
        os.close(pidfd)


def one_line(finished: Finished) -> str:
    """The complaint on stderr, which is one line and not a traceback."""
    assert finished.stdout == ""
    assert finished.stderr.endswith("\n")
    assert finished.stderr.count("\n") == 1, finished.stderr
    return finished.stderr.rstrip("\n")
