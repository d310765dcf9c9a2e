# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The contract of the transports, and the Backend class that states it to the type checker.

A backend is the one endpoint of its process in a rendezvous directory.  Together with the general code above it
(msgd.messaging), each backend keeps these clauses.  The tests carry the same numbers; tests/backends/contract/README.md
lists them.

 1. Order and count.  Between one sender and one receiver that both stay alive, messages arrive first in, first out,
    each exactly once.
 2. Size.  Messages from 0 bytes up to `max message size` (16 MiB by default) arrive whole on every backend.  A larger
    one raises MessageTooLarge before anything is sent.  Limits of the transport below, such as the size of a
    datagram, are the backend's to solve.
 3. Never blocks, never drops silently.  If a receiver is full, the sender queues messages in its own memory, up to a
    bound in messages and in bytes (both are parameters).  Dispatch or the event loop flushes the queue.  Past the bound
    send() raises QueueFull; with `timeout=` it first waits for room.  close() flushes the queue for a bounded time and
    returns the number of messages that it could not deliver.  Each message that is given up is counted; a line with
    destination and type is logged once a second at most.
 4. Dead is dead.  Sending to a process that does not exist, or that has closed its endpoint, raises NoSuchProcess at
    once.  No file, socket or record of a dead process outlives the next clean-up.
 5. Nobody innocent is touched.  A signal goes only to a process that is proven to be the peer: it holds the lock on its
    lock file, and the signal goes through a pidfd.  The new owner of a reused pid is never signalled, and never
    receives a message that was meant for the old one.
 6. The sender is who it says.  Where the kernel can tell (SCM_CREDENTIALS on dgram, SO_PEERCRED on stream), a message
    whose source pid is not the kernel's is dropped and counted.  Only root, the same uid and the configured users are
    heard.
 7. Fork.  A context that is used in a forked child raises ForkedContext.  reinit() gives the child its own identity.
 8. Bad bytes.  Any garbage is dropped and counted: short, long, a wrong version, lying lengths, too many fragments,
    descriptors that nobody asked for.  No exception leaves dispatch, no memory grows without bound, no descriptor
    leaks.
 9. A raising handler is logged with its message type, and the messages behind it are still handled.  A BaseException
    (KeyboardInterrupt, the exception of a signal handler) leaves dispatch, and no message is lost or doubled by it.
10. Broadcast reaches each live process that listens, once, and reports for each of the others why it was not reached.
    Its cost for each process does not depend on what the dead have left in the directory.
11. Watch reports the end of a process at once.
12. Many destinations.  Thousands of them work within the limit on descriptors.
13. Threads.  Any thread may send and register; one at a time dispatches.  Nothing is lost, doubled or reordered between
    two processes, and no error outside the closed set is raised.
14. Strangers' locks decide nothing.  Only write locks count as claims, and nothing waits for a lock without a limit.

Clauses 13 and 14 have no test of the whole clause yet; a context still belongs to one thread at a time.
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
    """The state of a backend's queues: messages and bytes queued in this process, and destinations with a queue."""

    queued_messages: int
    queued_bytes: int
    blocked_destinations: int


class Backend(abc.ABC):
    """One transport's endpoint of this process.

    The constructor makes the endpoint reachable.  It raises BackendUnavailable or TransportError if it cannot.  Each
    transport's package exports its class as BACKEND.
    """

    carries_fds: ClassVar[bool] = True
    """Whether messages on this transport can carry file descriptors."""

    def __init__(self, config: Config, presence: Presence, drops: Drops) -> None:
        self.config = config
        self.presence = presence
        self.drops = drops

    @abc.abstractmethod
    def fileno(self) -> int:
        """A descriptor that is readable whenever receive() or flush() has something to do."""

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
        """Send one message, or queue it.

        The descriptors in `fds` belong to the caller and stay open.  With `duplicates_allowed` false, an identical
        message that is still queued stands for this one.  Raises NoSuchProcess, QueueFull or TransportError; the
        message is then neither sent nor queued.
        """

    @abc.abstractmethod
    def receive(self, deliver: Deliver) -> None:
        """Pass received messages to `deliver`, a bounded number of them in each call.  Never blocks."""

    @abc.abstractmethod
    def flush(self, timeout: float = 0.0) -> None:
        """Send the queued messages as far as the destinations have room.

        With a `timeout` in seconds, first wait until one of them has room, at most for that long.
        """

    def wait(self, timeout: float | None, watched: int = -1) -> bool:
        """Wait until fileno() or the descriptor `watched` is readable, and return whether `watched` is.

        `timeout` is in seconds, None for no limit.  `watched` is -1 if there is none.
        """
        return wait_readable(self.fileno(), timeout, watched)

    @abc.abstractmethod
    def statistics(self) -> BackendStatistics:
        """The state of the queues."""

    def pending(self, pid: int) -> int:
        """The number of messages that are known to wait for `pid`."""
        return 0

    @classmethod
    def depths(cls, config: Config, directory: RendezvousDirectory) -> Mapping[int, int]:
        """The number of messages that wait for each pid, as far as an observer can see it.

        For tools only: a process that has an endpoint in the directory must not call this.  A transport whose queues
        are in the kernel returns nothing.  Raises BackendUnavailable, TransportError.
        """
        return {}

    def left_behind(self) -> Collection[int]:
        """The pids, dead or alive, of which this transport keeps something besides the socket."""
        return ()

    def remove(self, pid: int) -> None:  # noqa: B027 (most transports leave nothing behind)
        """Remove what this transport keeps of a dead process that left_behind() has named."""

    @abc.abstractmethod
    def give_up(self) -> int:
        """Drop the queued messages, count and log them, and return their number."""

    @abc.abstractmethod
    def close(self) -> None:
        """Remove the endpoint: from now on senders get NoSuchProcess.  A second call does nothing."""

    @abc.abstractmethod
    def abandon(self) -> None:
        """In a forked child: close every descriptor, and leave the parent's endpoint as it is."""
