# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Samba's three daemons, smbd, nmbd and winbindd, in their own directories and in a network of their own.

nmbd and the clients need the well-known ports and an interface that is not the loopback.  So they run in a network
namespace with a pair of virtual interfaces; files, pids and messages are those of the machine.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.interop.samba import PATIENCE, Samba, missing, stop

ADDRESS = "10.99.0.1"
_NETWORK = (
    f"ip link set lo up && ip link add s0 type veth peer name s1 && ip addr add {ADDRESS}/24 dev s0"
    " && ip link set s0 up && ip link set s1 up"
)


def missing_for_servers() -> str | None:
    """What is missing to run all three here; None if nothing is missing."""
    reason = missing()
    if reason is not None:
        return reason
    absent = [
        name
        for name in ("nmbd", "winbindd", "ip", "nsenter")
        if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None
    ]
    if absent:
        return f"{' and '.join(absent)} not found: apt-get install samba winbind iproute2 util-linux"
    tried = subprocess.run(["unshare", "-n", "sh", "-c", _NETWORK], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no network of its own can be made here: {tried.stderr.strip()}"


class Servers(Samba):
    """smbd, nmbd and winbindd inside the `with` block."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        directory.chmod(0o755)  # the guest is nobody
        text = (
            self.file.read_text()
            .replace("    disable netbios = yes\n", "")
            .replace(f"    smb ports = {self.port}\n", "")
        )
        text = text.replace("    interfaces = lo\n", f"    interfaces = {ADDRESS}/24 lo\n    smb ports = 445\n")
        text = text.replace(
            "    log level = 1\n",
            "    log level = 1\n"
            "    logging = file ringbuf:size=400000\n"
            f"    winbindd socket directory = {directory}/winbindd\n"
            f"    nmbd:socket dir = {directory}/nmbd\n"
            "    template homedir = /nonexistent\n",
        )
        self.file.write_text(
            f"{text}    guest only = yes\n\n[other]\n    path = {directory}/share\n    guest ok = yes\n"
        )
        self._network = subprocess.Popen(
            ["unshare", "-n", "sh", "-c", f"{_NETWORK} && echo up && exec sleep infinity"], stdout=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        assert self._network.stdout is not None
        assert self._network.stdout.readline() == b"up\n"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name in ("smbd", "nmbd", "winbindd"):
                self.start_daemon(name)
            self.smbd, self.pid = self.daemons["smbd"], self.daemons["smbd"].pid
            for helper in self._children():
                self._wait_until_it_answers("a helper of smbd", helper, self.smbd)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for program in self.daemons.values():
            stop(program)
        self._network.kill()
        self._network.wait()
        assert self._network.stdout is not None
        self._network.stdout.close()

    def start_daemon(self, name: str) -> subprocess.Popen[bytes]:
        """Start one of the three, perhaps again, and wait until it answers."""
        command = (name, "-F", "--no-process-group", "-s", self.file, "-l", self.directory / "log")
        self.daemons[name] = self.start(*self.inside, *command)
        return self.daemons[name]

    @property
    def inside(self) -> tuple[str, ...]:
        """The words before a command that make it run in the network."""
        return "nsenter", f"--net=/proc/{self._network.pid}/ns/net", "--"

    def pid_of(self, name: str) -> int:
        return self.daemons[name].pid

    @contextlib.contextmanager
    def session(self, share: str = "share") -> Iterator[Session]:
        """A client that is connected to a share."""
        before = set(self._children())
        command = [*self.inside, "stdbuf", "-oL", "smbclient", "-s", str(self.file), "-N", f"//{ADDRESS}/{share}"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as client:
            session = Session(client)
            try:
                assert "blocks available" in (said := session.list()), said
                (session.pid,) = set(self._children()) - before
                yield session
            finally:
                client.kill()


class Session:
    """smbclient at its prompt; `pid` is the process of smbd that serves it."""

    def __init__(self, client: subprocess.Popen[bytes]) -> None:
        self._client = client
        self.pid = 0

    def list(self) -> str:
        """What it says to `ls`; the empty text if it has ended."""
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._client.stdin.write(b"ls\n")
            self._client.stdin.flush()
        said, poll = b"", select.poll()
        poll.register(self._client.stdout, select.POLLIN)
        while poll.poll(PATIENCE * 1000):
            part = os.read(self._client.stdout.fileno(), 1 << 16)
            said += part
            if not part or b"blocks available" in said or b"NT_STATUS" in said:
                return said.decode(errors="replace")
        raise AssertionError(f"smbclient says nothing: {said!r}")

    def is_cut(self) -> bool:
        """Whether the share answers no more, within PATIENCE: each `ls` is a round trip to smbd."""
        deadline = time.monotonic() + PATIENCE
        while "blocks available" in self.list():
            if time.monotonic() > deadline:
                return False
        return True

    def has_ended_in_smbd(self) -> bool:
        """Whether the process of smbd ends within PATIENCE."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([pidfd], [], [], PATIENCE)[0])
        finally:
            os.close(pidfd)
