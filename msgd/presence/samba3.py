# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Find processes of Samba 3.0 (2003 to 2009), which have no lock files (`msgd:samba3 = yes`).

Rule 1. A process is one of Samba 3.0 if it has this directory's messages.tdb open, as root sees in /proc/PID/fd by
    device and inode, if it catches SIGUSR1, and if it holds no lock file.  SIGUSR1 does not end a process that catches
    it; so a program that only looks at the file (tdbdump, msgstatus) is not signalled, nor one that the process has
    executed, whose handlers are gone.
Rule 2. Whoever wants to signal the process opens a pidfd first and looks afterwards.  If the pid is reused in between,
    the pidfd belongs to a process that has ended, and signals nobody.
Rule 3. Such a process has no unique id.  An address with one never means it.
Rule 4. What it listens to is in connections.tdb.  Its keys hold bytes that Samba 3.0 hashes as signed numbers and
    today's libtdb as unsigned ones, so neither finds the other's records by key, and both traverse the file.  msgd's
    processes have records there as well, for Samba 3.0's broadcasts.
Rule 5. The file stays open as long as the process is here: with CLEAR_IF_FIRST, the first to open it empties it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgd.errors import BackendUnavailable
from msgd.presence.lock_file import lock_holder, open_lock_file
from msgd.presence.lock_text import Process
from msgd.wire.message_types import MessageClass
from msgd.wire.samba3_connections import connection_key, pack_connection, unpack_connection
from msgd.wire.server_id import ServerID

if TYPE_CHECKING:
    import tdb

MESSAGES_FILE = "messages.tdb"
CONNECTIONS_FILE = "connections.tdb"
_MODE = 0o644
_SIGUSR1 = 1 << (signal.SIGUSR1 - 1)


class Samba3Process(Process):
    """A process of Samba 3.0.  It has no lock file, so its unique id is that of any process."""

    __slots__ = ()


class Samba3Processes:
    """The processes of Samba 3.0 that use a directory, as any process sees them that may look at theirs in /proc."""

    def __init__(self, directory_fd: int, lock_dir_fd: int, own_pid: int) -> None:
        self._directory_fd = directory_fd
        self._lock_dir_fd = lock_dir_fd
        self._own_pid = own_pid
        self._descriptors: dict[int, str] = {}
        """By pid, the descriptor that was found to be messages.tdb: a first guess, which is checked each time."""

    def process(self, pid: int) -> Samba3Process | None:
        """The process with this pid; None if that is not proven to be one of Samba 3.0 (Rule 1).

        This process never is; to close its own lock file, opened a second time, would drop its lock.
        """
        if pid == self._own_pid:
            return None
        try:
            status = os.stat(MESSAGES_FILE, dir_fd=self._directory_fd, follow_symlinks=False)
            if not self._has_open(pid, (status.st_dev, status.st_ino)) or not _catches_sigusr1(pid):
                return None
        except (OSError, ValueError):
            self._descriptors.pop(pid, None)
            return None
        return None if self._holds_lock_file(pid) else Samba3Process(pid, ServerID(pid).unique_id, ("type tdb",))

    def all(self) -> Iterator[Samba3Process]:
        """All of them, found by looking at every process of the machine."""
        for name in os.listdir("/proc"):
            if name.isdigit() and (found := self.process(int(name))) is not None:
                yield found

    def _has_open(self, pid: int, inode: tuple[int, int]) -> bool:
        """Whether the process has this file open.  Raises OSError."""
        directory = f"/proc/{pid}/fd"
        guess = self._descriptors.get(pid)
        for name in (*((guess,) if guess else ()), *os.listdir(directory)):
            with contextlib.suppress(FileNotFoundError):  # it has just closed that one
                status = os.stat(f"{directory}/{name}")
                if (status.st_dev, status.st_ino) == inode:
                    self._descriptors[pid] = name
                    return True
        return False

    def _holds_lock_file(self, pid: int) -> bool:
        fd = open_lock_file(self._lock_dir_fd, pid)
        if fd is None:
            return False
        try:
            return lock_holder(fd) == pid
        finally:
            os.close(fd)


class Connections:
    """The open connections.tdb: who of Samba 3.0 listens, and this process's own record in it (Rule 4).

    Raises BackendUnavailable if it cannot be opened.
    """

    def __init__(self, directory_fd: int, directory: str, processes: Samba3Processes, *, use_mmap: bool) -> None:
        import tdb

        path = f"/proc/self/fd/{directory_fd}/{CONNECTIONS_FILE}"
        flags = tdb.CLEAR_IF_FIRST | (0 if use_mmap else tdb.NOMMAP)
        self._path = f"{directory}/{CONNECTIONS_FILE}"
        self._processes = processes
        try:
            self._tdb: tdb.Tdb = tdb.Tdb(path, 0, flags, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _MODE)
        except OSError as error:
            raise BackendUnavailable(f"{self._path}: {error.strerror}; msgd:samba3 = yes needs it") from error

    def announce(self, pid: int, classes: MessageClass) -> None:
        """Write this process's record.  Raises BackendUnavailable."""
        value = pack_connection(pid, os.geteuid(), os.getegid(), int(time.time()), classes)
        with self._errors():
            self._tdb.store(connection_key(pid), value)

    def listening(self, kind: MessageClass) -> list[ServerID]:
        """The living processes of Samba 3.0 that listen to broadcasts of this class.  Raises BackendUnavailable."""
        with self._errors():
            values = self._values()
        found = filter(None, map(unpack_connection, values))
        pids = sorted({one.pid for one in found if kind in one.classes})
        return [ServerID(pid) for pid in pids if self._processes.process(pid) is not None]

    def processes(self) -> list[Samba3Process]:
        """The living processes of Samba 3.0 that have a record.  Raises BackendUnavailable."""
        with self._errors():
            values = self._values()
        pids = sorted({one.pid for one in map(unpack_connection, values) if one is not None})
        return [found for pid in pids if (found := self._processes.process(pid)) is not None]

    def remove_dead(self) -> None:
        """Remove the records of processes that have ended.  Those of Samba 3.0 are its own to remove."""
        with self._errors():
            for value in self._values():
                listener = unpack_connection(value)
                if listener is not None and not os.path.exists(f"/proc/{listener.pid}"):
                    self._delete(listener.pid)

    def remove(self, pid: int) -> None:
        """Remove this process's record."""
        with contextlib.suppress(BackendUnavailable), self._errors():
            self._delete(pid)

    def close(self) -> None:
        """Close the file."""
        self._tdb.close()

    def _values(self) -> list[bytes]:
        self._tdb.lock_all()
        try:
            return [self._tdb.get(key) or b"" for key in list(self._tdb.keys())]
        finally:
            self._tdb.unlock_all()

    def _delete(self, pid: int) -> None:
        if self._tdb.get(connection_key(pid)) is not None:
            self._tdb.delete(connection_key(pid))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise BackendUnavailable(f"{self._path}: {error}; is it damaged?") from error


def _catches_sigusr1(pid: int) -> bool:
    """Whether the process, and not a mere thread, has a handler for SIGUSR1.  Raises OSError, ValueError."""
    with open(f"/proc/{pid}/status", "rb") as file:
        lines = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
    return int(lines[b"Tgid"]) == pid and bool(int(lines[b"SigCgt"], 16) & _SIGUSR1)
