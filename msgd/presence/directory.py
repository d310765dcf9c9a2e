"""Looking into a rendezvous directory without joining it: who is here, who has died, which names there are.

Looking leaves nothing behind, changes nothing and needs no more than the right to read the directory; the sockets'
directory, which only their user may enter, is not needed.  Who wants to be seen as well joins: see presence.py.

A process's own lock file is never opened here (closing it would drop the lock, see processes.py), so a process that is
present in a directory does not find itself by looking: its Presence tells.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from msgd.config import Config
from msgd.presence.lock_file import Entry, pids_in, read_lock_file, read_process
from msgd.presence.lock_text import Process
from msgd.presence.names.base import Entries, read_entry
from msgd.presence.names.choose import names_class
from msgd.presence.open_directory import open_existing
from msgd.wire.server_id import ANY_PROCESS, ServerID

LOCK_SUBDIRECTORY = "msg.lock"


class RendezvousDirectory:
    """A rendezvous directory as anybody sees it who may read it; a context manager.

    Raises TransportError if it is not there or may not be read, UnsafeDirectory if others can write to it: no process
    of msgd's would be in such a directory.
    """

    def __init__(self, config: Config) -> None:
        self.pid = os.getpid()
        self.directory = config.lock_directory
        self._fds: list[int] = []
        try:
            self._open(config)
        except BaseException:
            self.close()
            raise

    def _open(self, config: Config) -> None:
        """Open what is needed of the directories."""
        self.directory_fd = self._keep(open_existing(self.directory))
        path = os.path.join(self.directory, LOCK_SUBDIRECTORY)
        self.lock_dir_fd = self._keep(open_existing(path, follow_links=False))

    def _keep(self, fd: int) -> int:
        """Have a descriptor closed with the others."""
        self._fds.append(fd)
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the directories.  A second call does nothing."""
        while self._fds:
            os.close(self._fds.pop())

    # Processes

    def process(self, pid: int) -> Process | None:
        """The entry of the living process `pid`; None if there is none."""
        return None if pid == self.pid else read_process(self.lock_dir_fd, pid)

    def processes(self) -> Iterator[Process]:
        """The living processes of the directory, by pid."""
        for pid in sorted(pids_in(self.lock_dir_fd)):
            process = self.process(pid)
            if process is not None:
                yield process

    def entries(self) -> Iterator[Entry]:
        """What each lock file tells, those of the dead included, by pid."""
        for pid in sorted(pids_in(self.lock_dir_fd) - {self.pid}):
            entry = read_lock_file(self.lock_dir_fd, pid)
            if entry is not None:
                yield entry

    def is_alive(self, server_id: ServerID) -> bool:
        """Whether the addressed process lives: its lock is held and the unique id, if one is given, is its own."""
        process = self.process(server_id.pid)
        return process is not None and server_id.unique_id in (process.unique_id, *ANY_PROCESS)

    # Names

    def names(self) -> dict[str, list[ServerID]]:
        """The names that living processes have, and which ones these are."""
        return self._living_names(names_class().read(self.directory_fd, self.directory))

    def _living_names(self, all_entries: dict[str, Entries]) -> dict[str, list[ServerID]]:
        living = {name: self._living(entries) for name, entries in all_entries.items()}
        return {name: processes for name, processes in living.items() if processes}

    def _living(self, entries: Iterable[str]) -> list[ServerID]:
        """The processes of these entries that live."""
        named = (read_entry(text) for text in entries)
        return [server_id for server_id in named if server_id is not None and self.is_alive(server_id)]
