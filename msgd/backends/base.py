# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What a transport promises: the Backend ABC.

A backend is the one endpoint of its process in a rendezvous directory.  It carries messages of any allowed size to
the endpoints of other processes (its own included), in order, each once; it never blocks in send() or receive(),
never lets an exception out of receive() because of what a peer sent, and drops nothing without telling `drops`.
tests/backends/contract holds every compiled-in backend to this.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, NamedTuple

from msgd.config import Config
from msgd.drops import Drops
from msgd.linux import wait_readable
from msgd.presence import Presence, RendezvousDirectory
from msgd.results import SendStatus
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

Deliver = Callable[[Message], None]


class BackendStatistics(NamedTuple):
    """A backend's state: messages and bytes waiting in this process, and destinations they wait for."""

    queued_messages: int
    queued_bytes: int
    blocked_destinations: int


class Backend(abc.ABC):
    """One transport's endpoint of this process.

    The constructor makes the endpoint reachable and raises BackendUnavailable or TransportError if it cannot.
    Each backend module names its class as BACKEND.
    """

    carries_fds: ClassVar[bool] = True

    def __init__(self, config: Config, presence: Presence, drops: Drops) -> None:
        self.config = config
        self.presence = presence
        self.drops = drops

    @abc.abstractmethod
    def fileno(self) -> int:
        """A descriptor that polls readable whenever receive() or flush() has something to do."""

    @abc.abstractmethod
    def send(
        self,
        dst: ServerID,
        src: ServerID,
        message_type: int,
        data: bytes,
        fds: Collection[int] = (),
        duplicates_allowed: bool = True,
    ) -> SendStatus:
        """Send one message or queue it.

        `fds` are the caller's and stay open.  Raises NoSuchProcess, QueueFull, TransportError; then nothing was sent.
        """

    @abc.abstractmethod
    def receive(self, deliver: Deliver) -> None:
        """Hand what has come in to `deliver`, a bounded number of messages a call; never waits."""

    @abc.abstractmethod
    def flush(self, timeout: float = 0.0) -> None:
        """Send on what is queued, as far as the destinations take it.

        With a `timeout`, first wait at most that many seconds until one of them takes something.
        """

    def wait(self, timeout: float | None, watched: int = -1) -> bool:
        """Wait until fileno() or the descriptor `watched` is readable, at most `timeout` seconds (None: for ever).

        Whether `watched` is.
        """
        return wait_readable(self.fileno(), timeout, watched)

    @abc.abstractmethod
    def statistics(self) -> BackendStatistics:
        """The state of the queues."""

    def pending(self, pid: int) -> int:
        """The number of messages known to wait for `pid`."""
        return 0

    @classmethod
    def depths(cls, config: Config, directory: RendezvousDirectory) -> Mapping[int, int]:
        """The number of messages that wait for each process, as far as that can be seen from outside.

        For one who only looks: not for a process that is itself present in the directory.  A transport whose queues
        are in the kernel knows of none.  Raises BackendUnavailable, TransportError.
        """
        return {}

    def left_behind(self) -> Collection[int]:
        """The pids of which this transport keeps something besides the socket, dead or alive."""
        return ()

    def remove(self, pid: int) -> None:  # noqa: B027 (most transports leave nothing behind)
        """Remove what left_behind() found of a dead process."""

    @abc.abstractmethod
    def give_up(self) -> int:
        """Drop what is still queued, counting and logging it; the number of messages."""

    @abc.abstractmethod
    def close(self) -> None:
        """Withdraw the endpoint: from now on senders get NoSuchProcess."""

    @abc.abstractmethod
    def abandon(self) -> None:
        """In a forked child: close every descriptor and leave the parent's endpoint as it is."""
