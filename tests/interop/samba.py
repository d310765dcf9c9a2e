# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""An unmodified Samba in its own directories: smbd in the foreground, and smbcontrol to query it."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from msgd import Config, MessageType, Messaging, NoSuchProcess, ReplyTimeout

PROGRAMS = ("smbd", "smbcontrol", "smbclient", "tdbdump")
PATIENCE = 30.0
"""Seconds after which a Samba that has not started fails the test."""


def missing() -> str | None:
    """What is missing to run Samba here, and how to get it; None if nothing is missing."""
    if os.geteuid() != 0:
        return "a separate Samba needs root: run the tests as root"
    absent = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if absent:
        return f"{' and '.join(absent)} not found: apt-get install samba samba-common-bin smbclient tdb-tools"
    return None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": _path(), "LC_ALL": "C.UTF-8"}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Samba:
    """smb.conf, smbd and smbcontrol in one scratch directory; smbd runs inside the `with` block."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "smb.conf"
        self.port = _free_port()
        self.msgd_file = directory / "msgd.conf"
        """The same smb.conf for msgd, with its messaging type, a parameter of which Samba would warn."""
        self.msgd_file.write_text(f"messaging type = dgram\ninclude = {self.file}\n")
        for name in ("private", "state", "cache", "pid", "log", "share"):
            (directory / name).mkdir()
        self.file.write_text(
            "[global]\n"
            "    workgroup = TEST\n"
            "    netbios name = MSGDTEST\n"
            "    disable netbios = yes\n"
            "    interfaces = lo\n"
            "    bind interfaces only = yes\n"
            f"    smb ports = {self.port}\n"
            f"    lock directory = {directory}/lock\n"
            f"    state directory = {directory}/state\n"
            f"    cache directory = {directory}/cache\n"
            f"    private dir = {directory}/private\n"
            f"    pid directory = {directory}/pid\n"
            f"    ncalrpc dir = {directory}/ncalrpc\n"
            "    log level = 1\n"
            "    auth event notification = yes\n"
            "    map to guest = Bad User\n"
            "    load printers = no\n"
            "    printcap name = /dev/null\n"
            "    disable spoolss = yes\n"
            "    rpc start on demand helpers = no\n"
            "\n"
            "[share]\n"
            f"    path = {directory}/share\n"
            "    guest ok = yes\n"
        )

    def config(self) -> Config:
        """msgd's reading of the same smb.conf."""
        return Config.load(self.msgd_file)

    def __enter__(self) -> Self:
        self.smbd = self.start("smbd", "-F", "--no-process-group", "-s", self.file, "-l", self.directory / "log")
        self.pid = self.smbd.pid
        try:
            for helper in self._children():
                self._wait_until_it_answers("a helper of smbd", helper, self.smbd)
        except BaseException:
            stop(self.smbd)
            raise
        return self

    def _children(self) -> list[int]:
        """Smbd's helper processes.  It forks them before it first answers; they open their endpoints after that."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def __exit__(self, *_: object) -> None:
        stop(self.smbd)

    def start(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """Start a daemon of this smb.conf and wait until it answers PING."""
        with (self.directory / "log" / "output").open("ab") as output:
            program = subprocess.Popen(
                command,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # smbd kills its whole process group when it exits
            )
        try:
            self._wait_until_it_answers(str(program.args), program.pid, program)
        except BaseException:
            stop(program)
            raise
        return program

    def _wait_until_it_answers(self, what: str, pid: int, program: subprocess.Popen[bytes]) -> None:
        """Wait until the process answers a PING: it then has its lock file, its socket and its event loop.

        Raises AssertionError if `program` exits first, or if no answer arrives in time.
        """
        deadline = time.monotonic() + PATIENCE
        pidfd = os.pidfd_open(program.pid)
        try:
            with Messaging(self.config()) as messaging:
                while time.monotonic() < deadline:
                    if select.select([pidfd], [], [], 0.02)[0]:
                        raise AssertionError(f"{program.args!r} exited, status {program.wait()}:\n{self.log()}")
                    try:
                        messaging.request(pid, MessageType.PING, b"", MessageType.PONG, timeout=1)
                    except (NoSuchProcess, ReplyTimeout):
                        continue
                    return
        finally:
            os.close(pidfd)
        raise AssertionError(f"{what} has not answered for {PATIENCE:g} seconds:\n{self.log()}")

    def await_answer(self, messaging: Messaging) -> None:
        """Wait until smbd answers this context.

        If the process had another endpoint just before, Samba may queue the answer for that one.  It then loses the
        answer and logs "Connection refused", so the request is repeated.
        """
        for _ in range(3):
            with contextlib.suppress(ReplyTimeout):
                messaging.request(self.pid, MessageType.PING, b"", MessageType.PONG, timeout=PATIENCE / 3)
                return
        raise AssertionError(f"smbd has not answered for {PATIENCE:g} seconds:\n{self.log()}")

    def log(self) -> str:
        """The text of smbd's log."""
        logs = sorted(path for path in (self.directory / "log").iterdir() if path.is_file())
        return "\n".join(path.read_text(errors="replace") for path in logs)

    def run(self, *command: str | int | Path) -> tuple[int, str]:
        """Run a program to its end; return its exit status and its output, stderr included."""
        finished = subprocess.run(
            [str(word) for word in command],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        return finished.returncode, finished.stdout

    def smbcontrol(self, *arguments: str | int) -> tuple[int, str]:
        """Run Samba's smbcontrol on this smb.conf."""
        return self.run("smbcontrol", "-s", self.file, *arguments)

    def smbcontrol_until(self, wanted: set[str], *arguments: str | int) -> None:
        """Run smbcontrol until it has printed these lines; left alone, it would wait until its timeout."""
        command = ["stdbuf", "-oL", "smbcontrol", "-s", str(self.file), "-t", f"{PATIENCE:g}", *map(str, arguments)]
        left = set(wanted)
        with subprocess.Popen(
            command, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as running:
            assert running.stdout is not None
            for line in running.stdout:
                left.discard(line.rstrip("\n"))
                if not left:
                    break
            running.terminate()
        assert not left, f"smbcontrol {arguments} did not print {left}"

    def msgcontrol(self, *arguments: str | int) -> tuple[int, str]:
        """Run msgcontrol on this smb.conf."""
        return self.run(sys.executable, "-m", "msgd.tools.msgcontrol", "-s", self.msgd_file, *arguments)

    def msgstatus(self, *arguments: str) -> tuple[int, str]:
        """Run msgstatus on this smb.conf."""
        return self.run(sys.executable, "-m", "msgd.tools.msgstatus", "-s", self.msgd_file, *arguments)

    def start_msgd(self) -> subprocess.Popen[bytes]:
        """Start msgd on this smb.conf."""
        return self.start(sys.executable, "-m", "msgd.daemon", "-F", "-s", self.msgd_file)


def stop(program: subprocess.Popen[bytes]) -> None:
    """End a daemon and its helpers."""
    program.terminate()
    try:
        program.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
