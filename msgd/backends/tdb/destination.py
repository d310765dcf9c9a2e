# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A process as a destination: whether it is alive, how to wake it up, and the words of memory that it shares.

Rule 1. Only the process that was found to be the peer is ever signalled.  Its pidfd is opened first; then its lock file
is found to be locked by that pid, with the unique id of the address.  A pid that is reused later belongs to another
pidfd and to another lock file.

Rule 2. The lock is checked again before each signal.  A process that executes another program keeps its pid and its
pidfd, but loses its lock, and SIGUSR1 would kill that program.  A receiver that closes its endpoint writes CLOSED into
its word before it releases its lock.

Rule 3. A sender signals once per epoch (sleep.py).  While the process uses another messages.tdb than we, no epoch of
its counts as signalled: each message to it makes us look for the file that has the name (moving.py, rule 3).
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import time
from collections.abc import Callable

from msgd.backends.sockets import check_addressed
from msgd.backends.tdb.words import AWAKE, CLOSED, EPOCH, FILE, SLEEP, TAKING
from msgd.errors import NoSuchProcess, TransportError
from msgd.presence import Presence, Process
from msgd.presence.lock_file import lock_holder
from msgd.presence.shared_words import map_words, shared_words
from msgd.wire.server_id import ServerID

DESCRIPTORS = 3
"""File descriptors per destination: its pidfd, its lock file, and the one that Python's mmap duplicates."""

_TRUST_ALIVE = 20e-6
"""Seconds for which a process that was seen alive counts as alive: nobody can see it die and tell us in less."""

_SPINS = 200
"""How often a sender reads the word TAKING at most, some ten microseconds; then the receiver has been preempted."""


class Destination:
    """One process.  Without `memory` and `lock_fd` it is this process itself."""

    __slots__ = (
        "_lock_fd",
        "_memory",
        "_own_words",
        "_seen_alive",
        "pid",
        "pidfd",
        "server_id",
        "signalled_epoch",
        "unique_id",
        "words",
    )

    def __init__(
        self,
        process: Process,
        pidfd: int,
        words: memoryview,
        own_words: memoryview,
        memory: mmap.mmap | None = None,
        lock_fd: int = -1,
    ) -> None:
        """`own_words` are those of this process."""
        self.pid = process.pid
        self.unique_id = process.unique_id
        self.server_id = ServerID(process.pid, unique_id=process.unique_id)
        self.words = words
        """Its shared words; see words.py."""
        self.pidfd = pidfd
        self.signalled_epoch = AWAKE
        """The last epoch for which we have signalled it."""
        self._own_words = own_words
        self._memory = memory
        self._lock_fd = lock_fd
        self._seen_alive = 0.0

    def is_alive(self) -> bool:
        """Whether the process exists and has not closed its endpoint."""
        if self.words[EPOCH] == CLOSED:
            return False
        now = time.monotonic()
        if now - self._seen_alive > _TRUST_ALIVE:
            if not self.holds_lock():
                return False
            self._seen_alive = now
        return True

    def holds_lock(self) -> bool:
        """Whether the process exists and still runs the same program."""
        return self._lock_fd < 0 or lock_holder(self._lock_fd) == self.pid

    def has_ended(self) -> bool:
        """Whether the process has ended or has closed its endpoint, checked at this instant."""
        return self.words[EPOCH] == CLOSED or not self.holds_lock()

    def wake_up(self) -> None:
        """Signal the process if it sleeps, once per epoch."""
        epoch = self.words[EPOCH]
        if epoch not in (AWAKE, CLOSED, self.signalled_epoch):
            if epoch & SLEEP:
                self.signal()
            if self.words[FILE] == self._own_words[FILE]:  # read after the epoch, which a move writes last
                self.signalled_epoch = epoch

    def signal(self) -> None:
        """Signal the process, asleep or not."""
        with contextlib.suppress(ProcessLookupError):
            if self.holds_lock():
                signal.pidfd_send_signal(self.pidfd, signal.SIGUSR1)

    def spin_while_taking(self) -> None:
        """Spin until the process has emptied the record that it is working on."""
        words = self.words
        for _ in range(_SPINS):
            if not words[TAKING]:
                return

    def close(self) -> None:
        """Release the descriptors and the shared memory."""
        os.close(self.pidfd)
        if self._memory is not None:
            self.words.release()
            self._memory.close()
            os.close(self._lock_fd)


def _do_nothing(destination: Destination) -> None:
    """The endpoint is not open yet."""


class WakeUps:
    """Wakes destinations up at once, or all together while messages are gathered."""

    __slots__ = ("_destinations", "depth", "meet")

    def __init__(self) -> None:
        self.depth = 0
        """How many gatherings are in force."""
        self._destinations: list[Destination] = []
        self.meet: Callable[[Destination], None] = _do_nothing
        """Called with each destination that is added: whether it uses the same file (moving.py)."""

    def __bool__(self) -> bool:
        """Whether destinations wait for flush()."""
        return bool(self._destinations)

    def add(self, destination: Destination) -> None:
        """Wake it up if it sleeps, or let flush() do so; the compiled Sender does the first by itself."""
        self.meet(destination)
        if self.depth:
            self._destinations.append(destination)
        else:
            destination.wake_up()

    def flush(self) -> None:
        """Wake up all those that have been added while messages were gathered."""
        while self._destinations:
            self._destinations.pop().wake_up()


def open_destination(dst: ServerID, presence: Presence, own_words: memoryview) -> Destination:
    """The process that has the pid of `dst` now.  Raises NoSuchProcess, TransportError."""
    try:
        pidfd = os.pidfd_open(dst.pid)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise TransportError(f"sending to {dst}: {error.strerror}") from error
        raise NoSuchProcess(f"no process {dst}") from None
    if dst.pid == presence.pid:
        return Destination(Process(dst.pid, presence.unique_id), pidfd, own_words, own_words)
    try:
        mapped = map_words(presence.lock_dir_fd, dst.pid)
        if mapped is None:
            process = presence.process(dst.pid)
            if process is not None:
                check_addressed(dst, process, "tdb")
            raise NoSuchProcess(f"process {dst} takes no messages of type tdb here")
    except NoSuchProcess:
        os.close(pidfd)
        raise
    except OSError as error:
        os.close(pidfd)
        raise TransportError(f"sending to {dst}: {error.strerror}") from error
    except BaseException:
        os.close(pidfd)
        raise
    there, memory, lock_fd = mapped
    destination = Destination(there, pidfd, shared_words(memory), own_words, memory, lock_fd)
    try:
        _check_reachable(destination, dst)
    except BaseException:
        destination.close()
        raise
    return destination


def _check_reachable(destination: Destination, dst: ServerID) -> None:
    """Raise NoSuchProcess or TransportError unless the process lives and may be signalled by us."""
    if not destination.is_alive():
        raise NoSuchProcess(f"process {dst} has closed its endpoint")
    try:
        signal.pidfd_send_signal(destination.pidfd, 0)
    except PermissionError as error:
        raise TransportError(f"sending to {dst}: its user's processes cannot be signalled by us") from error
    except ProcessLookupError:
        raise NoSuchProcess(f"no process {dst}") from None
