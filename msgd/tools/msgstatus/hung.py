# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Find processes that do not take their messages, by looking at their queues again and again.

Nobody records when a message was queued, so its age shows only while one looks.

Rule 1. A queue stands still while something is in it and nothing leaves it.  With tdb the number of messages is known,
        and it falls whenever the process takes them.  Of a socket the kernel tells only what waits first, so a busy
        process may look the same twice: its queue counts as moving while the process uses the processor.
Rule 2. A process whose queue stands still for the whole time is hung, and for how long is known at least.
Rule 3. If nothing waits at the first look, there is no second one.

A limit of Rule 1: with dgram and stream, a handler that loops for ever is not seen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import NamedTuple

from msgd.config import Config
from msgd.errors import MsgdError
from msgd.messaging import backend_class
from msgd.presence import RendezvousDirectory
from msgd.presence.lock_file import pids_in
from msgd.tools.msgstatus.unix_sockets import path_key, waiting_by_path

_LOOKS = 10
_STATES = {"R": "running", "T": "stopped", "t": "traced", "D": "disk", "Z": "zombie"}


class _Queue(NamedTuple):
    waiting: int
    ticks: int | None
    """The processor time that the process has used; None with tdb, where it does not matter."""
    since: float
    """When it began to stand still, on the monotonic clock."""


class HungProcesses:
    """Remembers from one look to the next how long each queue has stood still."""

    def __init__(self, config: Config, seconds: float) -> None:
        self._config = config
        self._seconds = seconds
        self._queues: dict[int, _Queue] = {}

    def observe(self) -> None:
        """Look for as long as it takes to tell who is hung; once only, if nothing waits (Rule 3)."""
        deadline = time.monotonic() + self._seconds
        try:
            with RendezvousDirectory(self._config) as directory:
                self.look(directory)
                while self._queues and time.monotonic() < deadline:
                    time.sleep(self._seconds / _LOOKS)
                    self.look(directory)
        except MsgdError:
            return  # whoever reads the table afterwards reports it

    def look(self, directory: RendezvousDirectory) -> dict[int, float]:
        """Look once, and return who is hung, for how many seconds at least.  Raises TransportError and others."""
        is_tdb = self._config.messaging_type == "tdb"
        now = time.monotonic()
        waiting = backend_class("tdb").depths(self._config, directory) if is_tdb else self._in_sockets(directory)
        queues: dict[int, _Queue] = {}
        for pid, number in waiting.items():
            if number:
                queue = _Queue(number, None if is_tdb else _ticks(pid), now)
                before = self._queues.get(pid)
                stands_still = before is not None and (number >= before.waiting if is_tdb else queue[:2] == before[:2])
                queues[pid] = queue._replace(since=before.since) if before and stands_still else queue
        self._queues = queues
        return {pid: now - one.since for pid, one in queues.items() if now - one.since >= self._seconds}

    def _in_sockets(self, directory: RendezvousDirectory) -> Mapping[int, int]:
        """How much waits in the sockets of each process; nothing where the kernel does not tell."""
        try:
            waiting = waiting_by_path()
        except OSError:
            return {}
        found = {}
        for pid in pids_in(directory.lock_dir_fd):
            try:
                status = os.stat(f"{self._config.socket_directory}/{pid}")
            except OSError:
                continue
            found[pid] = waiting.get(path_key(status), 0)
        return found


def proc_text(pid: int, name: str) -> str:
    """A file of the process in /proc (proc(5)).  Raises OSError if it has ended."""
    with open(f"/proc/{pid}/{name}", errors="replace") as file:
        return file.read()


def wait_channel(pid: int) -> str | None:
    """Where the process waits: the kernel's wait channel if it is known, or its state; None if it has ended."""
    try:
        state = _stat(pid)[0]
    except (OSError, ValueError):
        return None
    try:
        channel = proc_text(pid, "wchan")
    except OSError:
        channel = ""
    return _STATES.get(state) or (channel if channel not in ("", "0") else "asleep")


def _ticks(pid: int) -> int | None:
    """The processor time that the process has used, in clock ticks; None if it has ended."""
    try:
        fields = _stat(pid)
        return int(fields[11]) + int(fields[12])
    except (OSError, ValueError):
        return None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on.  Raises OSError, ValueError."""
    text = proc_text(pid, "stat")
    return text[text.rindex(")") + 2 :].split()
