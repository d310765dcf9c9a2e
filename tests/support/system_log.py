# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A system log: real msgd, and real libsystemd or libc in it, log to a socket of the test's.

The addresses of journald and syslogd are fixed, so msgd gets mounts of its own where the test's socket is at them.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from types import TracebackType
from typing import Self

import pytest

from tests.support.daemons import ENVIRONMENT, PATIENCE, Place, Running

_MOUNT = """
set -e
mount -t tmpfs none /run
mkdir -p /run/systemd/journal /run/dev
for file in null zero random urandom; do
    : > /run/dev/$file
    mount --bind /dev/$file /run/dev/$file
done
for at in /run/systemd/journal/socket /run/dev/log; do
    : > $at
    mount --bind "$0" $at
done
mount --rbind /run/dev /dev
JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2)
export JOURNAL_STREAM
exec "$@"
"""


def _can_mount() -> bool:
    if os.geteuid() or not shutil.which("unshare"):
        return False
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/run"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif(not _can_mount(), reason="a mount namespace can be made by root only, if at all")


class SystemLog:
    """The socket that takes the place of journald's and of syslogd's."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._path = str(place.directory / "system-log")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(PATIENCE)
        self._socket.bind(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def command(self, *options: str) -> list[str]:
        """How msgd is started."""
        msgd = [sys.executable, "-m", "msgd.daemon", "-s", str(self._place.smb_conf), *options]
        return ["unshare", "-m", "sh", "-c", _MOUNT, self._path, *msgd]

    def journaling(self) -> Running:
        """A msgd that logs to the journal; it is ready."""
        msgd = self._place.keep(Running(self.command("-F"), environment=ENVIRONMENT))
        while "is ready as" not in self.entry("SERVER_ID")["MESSAGE"]:
            pass
        return msgd

    def line(self) -> str:
        """What is logged next to syslog."""
        return self._socket.recv(1 << 16).decode()

    def entry(self, field: str, value: str | None = None) -> dict[str, str]:
        """The next entry of the journal that has the field, with this value if one is given."""
        while True:
            entry = _read_entry(self._socket.recv(1 << 16))
            if field in entry and value in (None, entry[field]):
                return entry


def _read_entry(datagram: bytes) -> dict[str, str]:
    """Journald's protocol: `NAME=value` lines, or for a value of several lines `NAME`, its length and it."""
    entry = {}
    while datagram:
        line, _, datagram = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(datagram[:8], "little")
            value, datagram = datagram[8 : 8 + length], datagram[8 + length + 1 :]
        entry[name.decode()] = value.decode()
    return entry
