"""This process's place in a rendezvous directory: its lock file, its names, and what it does about the dead."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterable

from msgd.config import Config
from msgd.errors import NoSuchProcess, TransportError
from msgd.presence.clean_up import clean_up
from msgd.presence.directory import LOCK_SUBDIRECTORY, RendezvousDirectory
from msgd.presence.lock_file import LockFile
from msgd.presence.lock_text import Process, describe
from msgd.presence.names.base import Entries, Names, read_entry
from msgd.presence.names.choose import names_class
from msgd.presence.open_directory import open_directory, open_subdirectory
from msgd.presence.shared_words import share_words
from msgd.presence.socket_path import check_socket_directory
from msgd.wire.message_types import MessageClass
from msgd.wire.server_id import ANY_PROCESS, ServerID

_SHORT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


def new_unique_id() -> int:
    """A random unique id: 64 bits, none of the values that address "whoever has the pid"."""
    while True:
        unique_id = secrets.randbits(64)
        if unique_id not in ANY_PROCESS:
            return unique_id


class Presence(RendezvousDirectory):
    """Holds the directories open and this process's lock file locked, from construction to close().

    The others see it from announce() on.  Raises UnsafeDirectory if a directory could be written by others,
    TransportError if the system refuses, ConfigError if the socket directory's path is too long for AF_UNIX.
    """

    def __init__(self, config: Config) -> None:
        self.unique_id = new_unique_id()
        self.trusted_uids = frozenset((0, os.getuid(), os.geteuid(), *config.trusted_users))
        self.socket_directory = config.socket_directory
        check_socket_directory(self.socket_directory)
        self._messaging_type = config.messaging_type
        self.classes = MessageClass.ALL
        self._since = time.time()
        self._lock_file: LockFile | None = None
        self._names: Names | None = None
        super().__init__(config)

    def _open(self, config: Config) -> None:
        """Open the directories, made where they are missing, and take this process's place."""
        path, uids = self.directory, self.trusted_uids
        self.directory_fd = self._keep(open_directory(path, 0o755, uids))
        self.lock_dir_fd = self._keep(open_subdirectory(self.directory_fd, path, LOCK_SUBDIRECTORY, 0o755, uids))
        parent, name = os.path.split(self.socket_directory)
        if parent == path:
            self.socket_dir_fd = self._keep(open_subdirectory(self.directory_fd, parent, name, 0o700, uids))
        else:
            self.socket_dir_fd = self._keep(open_directory(self.socket_directory, 0o700, uids))
        lock_file = LockFile(self.lock_dir_fd, os.path.join(path, LOCK_SUBDIRECTORY), self.pid)
        lock_file.acquire()
        self._lock_file = lock_file

    @property
    def _lines(self) -> tuple[str, ...]:
        return describe(self._messaging_type, self.classes, self._since)

    def announce(self, classes: MessageClass = MessageClass.ALL) -> None:
        """Write the lock file: from now on this process is here for the others, and listens to these broadcasts.

        To be called when its endpoint can be reached, so that whoever sees it can send to it; and again when it
        listens to other classes.
        """
        assert self._lock_file is not None
        self.classes = classes
        self._lock_file.write(self.unique_id, self._lines)

    def process(self, pid: int) -> Process | None:
        """The entry of the living process `pid`, this one included; None if there is none."""
        if pid == self.pid:
            return Process(pid, self.unique_id, self._lines)
        return super().process(pid)

    def watch(self, server_id: ServerID) -> int:
        """A pidfd of the addressed process: it polls readable once the process has ended.  The caller closes it.

        Raises NoSuchProcess if it does not live; the check comes after the pidfd, so a reused pid is not watched.
        Raises TransportError if it cannot be watched: no file descriptors left.
        """
        try:
            fd = os.pidfd_open(server_id.pid)
        except OSError as error:
            if error.errno in _SHORT_OF_RESOURCES:
                raise TransportError(f"watching {server_id}: {error.strerror}") from error
            raise NoSuchProcess(f"no process {server_id}") from None
        if not self.is_alive(server_id):
            os.close(fd)
            raise NoSuchProcess(f"no process {server_id}")
        return fd

    def share_words(self, first: int) -> memoryview:
        """64 words of this process that others can look into; see shared_words.py."""
        assert self._lock_file is not None
        return share_words(self._lock_file, first)

    # Names

    def add_name(self, name: str, server_id: ServerID) -> None:
        """Let a context of this process be found by `name`, beside any others that have it."""
        self._open_names().add(name, server_id)

    def remove_name(self, name: str, server_id: ServerID) -> None:
        """Take the name from a context of this process."""
        self._open_names().discard(name, [str(server_id)])

    def lookup(self, name: str) -> list[ServerID]:
        """The living processes that have the name; entries of dead ones are removed."""
        names = self._open_names()
        entries = names.entries(name)
        self._discard_dead(names, name, entries)
        return self._living(entries)

    def names(self) -> dict[str, list[ServerID]]:
        """The names that living processes have, and which ones these are."""
        return self._living_names(self._open_names().all_entries())

    def _open_names(self) -> Names:
        if self._names is None:
            self._names = names_class()(self.directory_fd, self.directory)
        return self._names

    def _discard_dead(self, names: Names, name: str, entries: Entries) -> None:
        dead = [text for text in entries if (server_id := read_entry(text)) and not self.is_alive(server_id)]
        if dead:
            names.discard(name, dead)

    # The end

    def clean_up(self, found: Iterable[int], remove: Callable[[int], None]) -> list[int]:
        """Remove sockets, lock files and names of dead processes; the pids of which there were files.

        `found` are pids of which the caller has found something else; remove(pid) removes that, for dead ones only.
        Safe beside any number of other cleaners, Samba's included: see processes.py, and names.py for the names.
        Raises TransportError, UnsafeDirectory.
        """
        removed = clean_up(self.lock_dir_fd, self.socket_dir_fd, self.pid, found, remove)
        names = self._open_names()
        for name, entries in names.all_entries().items():
            self._discard_dead(names, name, entries)
        return removed

    def close(self) -> None:
        """Withdraw: remove the lock file and close everything.  A second call does nothing."""
        if self._lock_file is not None:
            self._lock_file.release()
        self._let_go()

    def abandon(self) -> None:
        """In a forked child: close everything and leave the files, which are the parent's."""
        if self._lock_file is not None:
            self._lock_file.abandon()
        self._let_go()

    def _let_go(self) -> None:
        self._lock_file = None
        if self._names is not None:
            self._names.close()
            self._names = None
        super().close()
