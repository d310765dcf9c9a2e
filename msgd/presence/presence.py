"""This process's entry in a rendezvous directory, and its view of the others'."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator

from msgd.config import Config
from msgd.errors import ConfigError, NoSuchProcess, TransportError
from msgd.presence.directories import open_directory, open_subdirectory
from msgd.presence.processes import LockFile, Process, read_process, remove_if_dead
from msgd.wire.server_id import ANY_PROCESS, ServerID

LOCK_SUBDIRECTORY = "msg.lock"
SUN_PATH_MAX = 107
"""Bytes of a path that fit an AF_UNIX address, without the NUL."""
_PID_DIGITS = 7
"""Linux' pid_max is at most 4194304."""


def new_unique_id() -> int:
    """A random unique id: 64 bits, none of the values that address "whoever has the pid"."""
    while True:
        unique_id = secrets.randbits(64)
        if unique_id not in ANY_PROCESS:
            return unique_id


class Presence:
    """Holds the directories open and this process's lock file locked, from construction to close().

    Raises UnsafeDirectory if a directory could be written by others, TransportError if the system refuses,
    ConfigError if the socket directory's path is too long for AF_UNIX.
    """

    def __init__(self, config: Config) -> None:
        self.pid = os.getpid()
        self.unique_id = new_unique_id()
        self.trusted_uids = frozenset((0, os.getuid(), os.geteuid(), *config.trusted_users))
        self.socket_directory = config.socket_directory
        check_socket_path(self.socket_directory)
        self._lock_file: LockFile | None = None
        self._fds: list[int] = []
        try:
            self._open(config)
        except BaseException:
            self.close()
            raise

    def _open(self, config: Config) -> None:
        directory = open_directory(config.lock_directory, 0o755, self.trusted_uids)
        self._fds.append(directory)
        self.directory_fd = directory
        self.lock_dir_fd = open_subdirectory(
            directory, config.lock_directory, LOCK_SUBDIRECTORY, 0o755, self.trusted_uids
        )
        self._fds.append(self.lock_dir_fd)
        parent, name = os.path.split(self.socket_directory)
        if parent == config.lock_directory:
            self.socket_dir_fd = open_subdirectory(directory, parent, name, 0o700, self.trusted_uids)
        else:
            self.socket_dir_fd = open_directory(self.socket_directory, 0o700, self.trusted_uids)
        self._fds.append(self.socket_dir_fd)
        lock_file = LockFile(self.lock_dir_fd, os.path.join(config.lock_directory, LOCK_SUBDIRECTORY), self.pid)
        lock_file.acquire()
        self._lock_file = lock_file

    def announce(self) -> None:
        """Write the unique id into the lock file: from now on this process is here for the others.

        To be called when its endpoint can be reached, so that whoever sees it can send to it.
        """
        assert self._lock_file is not None
        try:
            self._lock_file.write(self.unique_id)
        except OSError as error:
            raise TransportError(f"the lock file of pid {self.pid}: {error.strerror}") from error

    def process(self, pid: int) -> Process | None:
        """The entry of the living process `pid`, this one included; None if there is none."""
        if pid == self.pid:
            return Process(pid, self.unique_id)
        return read_process(self.lock_dir_fd, pid)

    def is_alive(self, server_id: ServerID) -> bool:
        """Whether the addressed process lives: its lock is held and the unique id, if one is given, is its own."""
        process = self.process(server_id.pid)
        return process is not None and server_id.unique_id in (process.unique_id, *ANY_PROCESS)

    def watch(self, server_id: ServerID) -> int:
        """A pidfd of the addressed process: it polls readable once the process has ended.  The caller closes it.

        Raises NoSuchProcess if it does not live; the check comes after the pidfd, so a reused pid is not watched.
        """
        try:
            fd = os.pidfd_open(server_id.pid)
        except OSError:
            raise NoSuchProcess(f"no process {server_id}") from None
        if not self.is_alive(server_id):
            os.close(fd)
            raise NoSuchProcess(f"no process {server_id}")
        return fd

    def processes(self) -> Iterator[Process]:
        """The living processes of the directory, this one included, by pid."""
        for pid in sorted(_pids(self.lock_dir_fd)):
            process = self.process(pid)
            if process is not None:
                yield process

    def share_words(self, first: int) -> memoryview:
        """64 words of this process that others can look into; see LockFile.share_words."""
        assert self._lock_file is not None
        return self._lock_file.share_words(first)

    def clean_up(self, found: Iterable[int], remove: Callable[[int], None]) -> list[int]:
        """Remove sockets and lock files of dead processes; the pids they had.

        `found` are pids of which the caller has found something else; remove(pid) removes that, for dead ones only.
        Safe beside any number of other cleaners, Samba's included: see processes.py.  Raises TransportError.
        """
        pids = {*found, *_pids(self.lock_dir_fd), *_pids(self.socket_dir_fd)} - {self.pid}
        try:
            return [pid for pid in sorted(pids) if remove_if_dead(self.lock_dir_fd, self.socket_dir_fd, pid, remove)]
        except OSError as error:
            raise TransportError(f"cleaning up after dead processes: {error.strerror}") from error

    def close(self) -> None:
        """Withdraw: remove the lock file and close everything.  A second call does nothing."""
        if self._lock_file is not None:
            self._lock_file.release()
        self._close_directories()

    def abandon(self) -> None:
        """In a forked child: close everything and leave the files, which are the parent's."""
        if self._lock_file is not None:
            self._lock_file.abandon()
        self._close_directories()

    def _close_directories(self) -> None:
        self._lock_file = None
        while self._fds:
            os.close(self._fds.pop())


def check_socket_path(socket_directory: str) -> None:
    """Raise ConfigError if a socket in the directory could not be named in an AF_UNIX address."""
    length = len(os.fsencode(socket_directory)) + 1 + _PID_DIGITS
    if length > SUN_PATH_MAX:
        raise ConfigError(
            f"msgd:socket directory = {socket_directory}: with /PID its sockets' paths have {length} bytes,"
            f" AF_UNIX takes at most {SUN_PATH_MAX}; choose a shorter directory"
        )


def _pids(directory_fd: int) -> set[int]:
    return {int(name) for name in os.listdir(directory_fd) if name.isascii() and name.isdigit() and len(name) < 11}
