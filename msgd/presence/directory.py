# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Reading a rendezvous directory without joining it: which processes are alive, which have died, which names exist.

Rule 1. Reading changes nothing and leaves nothing behind.
Rule 2. It needs only the right to read the lock directory.  The socket directory, which is closed to other users, is
    not opened.
Rule 3. This process's own lock file is never opened here, because closing it would drop the lock (see lock_file.py).
    A process that has joined the directory therefore does not see itself through a RendezvousDirectory; its Presence
    (membership.py) reports it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from msgd.config import Config
from msgd.presence.lock_file import Entry, pids_in, read_lock_file, read_process
from msgd.presence.lock_text import Process
from msgd.presence.names.base import living_names
from msgd.presence.names.choose import read_names
from msgd.presence.open_directory import LOCK_SUBDIRECTORY, close_later, open_existing
from msgd.wire.server_id import ServerID


class RendezvousDirectory:
    """A rendezvous directory as seen from outside, by anyone who may read it; a context manager.

    Raises TransportError if the directory is missing or unreadable, and UnsafeDirectory if other users can write to
    it: no msgd process would join such a directory.
    """

    def __init__(self, config: Config) -> None:
        self.pid = os.getpid()
        self.directory = config.lock_directory
        lock_directory = os.path.join(self.directory, LOCK_SUBDIRECTORY)
        with contextlib.ExitStack() as opened:
            self.directory_fd = close_later(opened, open_existing(self.directory))
            self.lock_dir_fd = close_later(opened, open_existing(lock_directory, follow_links=False))
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the directories.  A second call does nothing."""
        self._opened.close()

    def process(self, pid: int) -> Process | None:
        """The entry of the living process `pid`; None if there is none, and for this process (Rule 3)."""
        return None if pid == self.pid else read_process(self.lock_dir_fd, pid)

    def processes(self) -> Iterator[Process]:
        """The living processes of the directory, ordered by pid."""
        return filter(None, map(self.process, sorted(pids_in(self.lock_dir_fd))))

    def entries(self) -> Iterator[Entry]:
        """The contents of every lock file, including those of dead processes, ordered by pid."""
        for pid in sorted(pids_in(self.lock_dir_fd) - {self.pid}):
            entry = read_lock_file(self.lock_dir_fd, pid)
            if entry is not None:
                yield entry

    def is_alive(self, server_id: ServerID) -> bool:
        """Whether the addressed process is alive: its lock is held, and any unique id in the address is its own."""
        process = self.process(server_id.pid)
        return process is not None and process.is_addressed_by(server_id)

    def names(self) -> dict[str, list[ServerID]]:
        """The names of living processes, each with the processes that have it."""
        return living_names(read_names(self.directory_fd, self.directory), self.is_alive)
