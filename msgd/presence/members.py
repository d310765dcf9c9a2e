# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The living processes of a directory, kept in memory and read again only after something has changed.

A broadcast needs to know who is here.  Reading the lock file of each process costs 10 to 20 microseconds, which is more
than sending to it; asking whether anything has changed costs two fstat() calls, however many processes there are.

Rule 1.  A process that comes, goes in good order, or is cleaned up after changes the modification time of msg.lock, of
    msg.sock, or of both: a lock file or a socket is created or unlinked.  One of Samba's that takes over the lock file
    of a dead predecessor with its pid still has to bind a socket.
Rule 2.  A process that changes its own text sets the time of msg.lock itself (touch()).
Rule 3.  The kernel's file times advance in steps.  What was read within _STEP of a change may miss another change
    within that step, so it is not kept for the next time.
Rule 4.  A lock file without text belongs to a process that is about to announce itself, which changes no directory.
    Such a file is read again each time.
Rule 5.  A process that is killed changes nothing.  It shows when something is sent to it, and is forgotten then.

Rejected: inotify.  A user has 128 instances of it (fs.inotify.max_user_instances), fewer than the processes that are to
broadcast; and each arrival would put an event into the queue of each process, also of those that never broadcast.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgd.errors import TransportError
from msgd.presence.lock_file import pids_in, read_lock_file
from msgd.presence.lock_text import Process
from msgd.wire.message_types import MessageClass
from msgd.wire.server_id import EVERY_TASK, ServerID

if TYPE_CHECKING:
    from msgd.presence.samba3 import Connections

_STEP = 20_000_000
"""Nanoseconds: twice the longest step of file times (10 ms, on a kernel with 100 ticks a second)."""

_WHOLE_SECOND = 1_000_000_000
_COARSE_STEP = 2_100_000_000
"""Nanoseconds: the same for a file system that keeps whole seconds."""

_NEVER = (-1, -1)


class Members:
    """The processes of the directory other than this one."""

    def __init__(self, lock_dir_fd: int, socket_dir_fd: int, own_pid: int) -> None:
        self._lock_dir_fd = lock_dir_fd
        self._socket_dir_fd = socket_dir_fd
        self._own_pid = own_pid
        self._times = _NEVER
        """The modification times for which the tables are true; _NEVER if they are not to be trusted."""
        self._processes: dict[int, Process] = {}
        self._starting: set[int] = set()
        self.connections: Connections | None = None
        """Samba 3.0's processes, where those are accepted.  They are looked up for each broadcast."""
        self._listening: dict[MessageClass, list[ServerID]] = {}
        """By class, the addresses that a broadcast goes to: worked out when they are first needed."""

    def touch(self) -> None:
        """This process has changed its text: make the others read it again.  Raises TransportError."""
        try:
            os.utime(self._lock_dir_fd)
        except OSError as error:
            raise TransportError(f"the directory of lock files: {error.strerror}") from error

    def listening(self, kind: MessageClass) -> list[ServerID]:
        """The addresses to which a broadcast of this class goes, in the order of their pids.  Do not change the list.

        Raises TransportError if the directory cannot be read, BackendUnavailable if connections.tdb cannot.
        """
        self.refresh()
        found = self._listening.get(kind)
        if found is None:
            found = self._listening[kind] = [
                ServerID(pid, EVERY_TASK if one.is_ours else 0, unique_id=one.unique_id)
                for pid, one in sorted(self._processes.items())
                if kind in one.classes
            ]
        return found if self.connections is None else [*found, *self.connections.listening(kind)]

    def process(self, pid: int) -> Process | None:
        """The entry of another process as it was at the last refresh()."""
        return self._processes.get(pid)

    def forget(self, server_id: ServerID) -> None:
        """This process has been found to be dead."""
        known = self._processes.get(server_id.pid)
        if known is not None and known.unique_id == server_id.unique_id:
            del self._processes[server_id.pid]
            self._listening.clear()

    def refresh(self) -> None:
        """Read again what may have changed.  Raises TransportError."""
        try:
            times = os.stat(self._lock_dir_fd).st_mtime_ns, os.stat(self._socket_dir_fd).st_mtime_ns
            if times != self._times:
                self._read_all(times)
            elif self._starting:
                self._read_each(self._starting)
        except OSError as error:
            raise TransportError(f"the directory of lock files: {error.strerror}") from error

    def _read_all(self, times: tuple[int, int]) -> None:
        """Read every lock file.  `times` are the modification times from before."""
        self._times, now = _NEVER, time.time_ns()
        pids = pids_in(self._lock_dir_fd) - {self._own_pid}
        self._processes.clear()
        self._listening.clear()
        self._read_each(pids)
        if all(now - one > (_STEP if one % _WHOLE_SECOND else _COARSE_STEP) for one in times):
            self._times = times

    def _read_each(self, pids: Iterable[int]) -> None:
        """Read these lock files, and note which of them have no text yet."""
        starting = set()
        for pid in pids:
            entry = read_lock_file(self._lock_dir_fd, pid)
            if entry is not None and entry.process is None:
                starting.add(pid)
            elif entry is not None and entry.process is not None and entry.is_alive:
                self._processes[pid] = entry.process
                self._listening.clear()
        self._starting = starting
