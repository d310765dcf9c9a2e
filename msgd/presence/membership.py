# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""This process's place in a rendezvous directory.

A member has the directories open, holds the lock on its own lock file, may have names, and cleans up after the dead.
Each of these is a module of its own; Presence puts them together.

Rule 1. The lock is held from the constructor on, but the lock file has no text until announce().  Without a unique id
    the process cannot be addressed, so nothing is sent to it before its endpoint is ready.
Rule 2. A unique id is random, is used by one process only, and is never one of the values that mean "whoever has this
    pid".  An address that contains it therefore never reaches a later process with the same pid.
Rule 3. A process gives up what it owns in this order: names, endpoint, lock file, directories.  So its lock is held
    as long as anything of it can be found, and no cleaner touches it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from msgd.config import Config
from msgd.errors import BackendUnavailable, NoSuchProcess, TransportError
from msgd.presence.clean_up import Cleaner
from msgd.presence.lock_file import LockFile, pids_in, read_process
from msgd.presence.lock_text import Process, describe
from msgd.presence.members import Members
from msgd.presence.names.base import Names, living, living_names
from msgd.presence.names.choose import open_names
from msgd.presence.open_directory import LOCK_SUBDIRECTORY, MemberDirectories
from msgd.presence.private_lock import PrivateLock
from msgd.presence.shared_words import share_words
from msgd.presence.socket_path import check_socket_directory
from msgd.wire.message_types import MessageClass
from msgd.wire.server_id import ANY_UNIQUE_ID, NONCLUSTER_VNN, ServerID

if TYPE_CHECKING:
    from msgd.presence.samba3 import Samba3Processes

_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


def new_unique_id() -> int:
    """A random 64-bit unique id that is none of the values which mean "whoever has this pid" (Rule 2)."""
    while True:
        unique_id = int.from_bytes(os.urandom(8))
        if unique_id not in ANY_UNIQUE_ID:
            return unique_id


def _entry(server_id: ServerID) -> str:
    """The entry of a process of this node in the names: see read_entry()."""
    return str(server_id._replace(vnn=NONCLUSTER_VNN))


class Presence:
    """This process as a member of a rendezvous directory, from construction to close().

    Other processes see it from announce() on.  Raises UnsafeDirectory if other users can write to one of the
    directories, TransportError if the system refuses, ConfigError if the path of the socket directory is too long for
    AF_UNIX.
    """

    def __init__(self, config: Config) -> None:
        self.pid = os.getpid()
        self.unique_id = new_unique_id()
        self._is_clustered = config.clustering
        self.vnn = NONCLUSTER_VNN
        """The number of this node in its cluster, once it is known."""
        self.classes = MessageClass.ALL
        self.tasks: frozenset[int] = frozenset()
        self.trusted_uids = frozenset((0, os.getuid(), os.geteuid(), *config.trusted_users))
        self.directory = config.lock_directory
        self.socket_directory = config.socket_directory
        self._messaging_type = config.messaging_type
        self._allows_monitor = config.monitor
        self.longest_datagram = 0
        """The longest datagram that the transport reads, if it reads any; it is set before announce()."""
        self._since = time.time()
        self._names: Names | None = None
        check_socket_directory(self.socket_directory)
        self._directories = MemberDirectories(config, self.trusted_uids)
        self.directory_fd = self._directories.directory_fd
        self.lock_dir_fd = self._directories.lock_dir_fd
        self.socket_dir_fd = self._directories.socket_dir_fd
        private = PrivateLock(self.directory_fd, self.directory)
        lock_directory = os.path.join(self.directory, LOCK_SUBDIRECTORY)
        self._lock_file = LockFile(self.lock_dir_fd, lock_directory, self.pid, private)
        self._cleaner = Cleaner(self.lock_dir_fd, self.socket_dir_fd, self.pid, private)
        try:
            self._lock_file.acquire()
        except BaseException:
            self._directories.close()
            raise
        self.members = Members(self.lock_dir_fd, self.socket_dir_fd, self.pid)
        self._is_announced = False
        self.samba3: Samba3Processes | None = None
        """Tells processes of Samba 3.0; None unless they are to be accepted."""
        if config.samba3 and config.messaging_type == "tdb":
            self._accept_samba3(config)

    def _accept_samba3(self, config: Config) -> None:
        from msgd.presence.samba3 import Connections, Samba3Processes  # rarely needed

        self.samba3 = Samba3Processes(self.directory_fd, self.lock_dir_fd, self.pid)
        try:
            self.members.connections = Connections(
                self.directory_fd, self.directory, self.samba3, use_mmap=config.use_mmap
            )
        except BaseException:
            self.close()
            raise

    def announce(self, classes: MessageClass = MessageClass.ALL, tasks: Iterable[int] = (0,)) -> None:
        """Write the lock file: other processes now see this one, its task ids, and the broadcast classes it listens to.

        Call it once the endpoint can be reached, and again when these may have changed.  Raises TransportError.
        """
        tasks = frozenset(tasks)
        if self._is_announced and (classes, tasks) == (self.classes, self.tasks):
            return
        self.classes, self.tasks = classes, tasks
        self._lock_file.write(self.unique_id, self._lines)
        if self.members.connections is not None:
            self.members.connections.announce(self.pid, classes)
        if self._is_announced:
            self.members.touch()
        self._is_announced = True

    def share_words(self, first: int) -> memoryview:
        """Share 64 words of memory with other processes, the first set to `first`; call it before announce().

        Release the view before close().  Raises OSError.  See shared_words.py.
        """
        return share_words(self._lock_file, first)

    def clean_up_some(self, most: int, remove: Callable[[int], None]) -> None:
        """Check `most` entries of other processes, chosen at random, and remove what the dead among them left.

        Errors are left to clean_up().
        """
        pids = list(pids_in(self.lock_dir_fd) - {self.pid})
        for pid in random.sample(pids, min(most, len(pids))):
            with contextlib.suppress(OSError, TransportError):
                self._cleaner.remove_if_dead(pid, remove)

    def close(self) -> None:
        """Leave: remove the lock file and close everything.  A second call does nothing."""
        if self.members.connections is not None:
            self.members.connections.remove(self.pid)
        self._lock_file.release()
        self._close_all()

    def abandon(self) -> None:
        """In a forked child: close everything but leave the files, which belong to the parent."""
        self._lock_file.abandon()
        self._close_all()

    def _close_all(self) -> None:
        if self._names is not None:
            self._names.close()
            self._names = None
        if self.members.connections is not None:
            self.members.connections.close()
            self.members.connections = None
        self._directories.close()

    @property
    def _lines(self) -> tuple[str, ...]:
        return describe(
            self._messaging_type,
            self.classes,
            self.tasks,
            self._since,
            self.longest_datagram,
            allows_monitor=self._allows_monitor,
        )

    # Processes

    def is_here(self, server_id: ServerID) -> bool:
        """Whether the address is one of this node: it has this node's number, or none.

        While a cluster's number is unknown, it may be in addresses all the same, as others know it earlier: then the
        unique id tells.
        """
        if server_id.vnn == NONCLUSTER_VNN or server_id.vnn == self.vnn:
            return True
        is_unknown = self._is_clustered and self.vnn == NONCLUSTER_VNN and server_id.unique_id not in ANY_UNIQUE_ID
        return is_unknown and self.is_alive(server_id)

    def is_same_process(self, one: ServerID, other: ServerID) -> bool:
        """Whether two addresses have the same pid on the same node."""
        return one.pid == other.pid and (one.vnn == other.vnn or (self.is_here(one) and self.is_here(other)))

    def process(self, pid: int) -> Process | None:
        """The entry of the living process `pid`, this one included; None if there is none."""
        if pid == self.pid:
            return Process(pid, self.unique_id, self._lines)
        found = read_process(self.lock_dir_fd, pid)
        return self.samba3.process(pid) if found is None and self.samba3 is not None else found

    def processes(self) -> Iterator[Process]:
        """The living processes of the directory, this one included, ordered by pid; those of Samba 3.0 come last."""
        yield from filter(None, map(self.process, sorted(pids_in(self.lock_dir_fd))))
        if self.members.connections is not None:
            yield from self.members.connections.processes()

    def is_alive(self, server_id: ServerID) -> bool:
        """Whether the addressed process is alive: its lock is held, and any unique id in the address is its own."""
        process = self.process(server_id.pid)
        return process is not None and process.is_addressed_by(server_id)

    def watch(self, server_id: ServerID) -> int:
        """A pidfd of the addressed process: it polls readable once the process has ended.  The caller closes it.

        The pidfd is opened first and the process checked afterwards.  A pid that is reused in between fails the check,
        so the pidfd never refers to a successor.  Raises NoSuchProcess if the process is not alive, TransportError if
        it cannot be watched, for example because no descriptors are left.
        """
        try:
            fd = os.pidfd_open(server_id.pid)
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                raise TransportError(f"watching {server_id}: {error.strerror}") from error
            raise NoSuchProcess(f"no process {server_id}") from None
        try:
            if self.is_alive(server_id):
                watched, fd = fd, -1
                return watched
        finally:
            if fd >= 0:
                os.close(fd)
        raise NoSuchProcess(f"no process {server_id}")

    # Names

    def add_name(self, name: str, server_id: ServerID) -> None:
        """Give `name` to a context of this process; others that have it keep it.

        Raises ValueError if it is not a name.  Why the names are opened once more afterwards: choose.py.
        """
        names = self._open_names()
        names.add(name, server_id._replace(vnn=NONCLUSTER_VNN))
        try:
            self._open_names()
        except BackendUnavailable:
            names.discard(name, [_entry(server_id)])
            raise

    def remove_name(self, name: str, server_id: ServerID) -> None:
        """Take `name` away from a context of this process; it need not have it."""
        self._open_names().discard(name, [_entry(server_id)])

    def lookup(self, name: str) -> list[ServerID]:
        """The living processes that have the name, in the order in which they took it; prunes the dead ones."""
        names = self._open_names()
        entries = names.entries(name)
        names.prune(name, entries, self.is_alive, self.vnn)
        return living(entries, self.is_alive, self.vnn)

    def names(self) -> dict[str, list[ServerID]]:
        """The names of living processes, each with the processes that have it."""
        return living_names(self._open_names().all_entries(), self.is_alive, self.vnn)

    def _open_names(self) -> Names:
        """The names, opened on first use: BackendUnavailable concerns only a process that uses names."""
        self._names = open_names(self.directory_fd, self.directory, self._names)
        return self._names

    # The dead

    def clean_up(self, found: Iterable[int], remove: Callable[[int], None]) -> list[int]:
        """Remove the sockets, lock files and names of dead processes.  Returns the pids that had files.

        `found` holds pids of which the caller has found something else; `remove(pid)` removes that, and is called for
        dead processes only.  Any number of cleaners, Samba's included, can run at once: clean_up.py and names/base.py
        say why.  Raises TransportError, UnsafeDirectory.
        """
        removed = self._cleaner.remove_dead(found, remove)
        names = self._open_names()
        for name, entries in names.all_entries().items():
            names.prune(name, entries, self.is_alive, self.vnn)
        if self.members.connections is not None:
            self.members.connections.remove_dead()
        return removed
