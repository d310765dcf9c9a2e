# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The contract of the transports, and the Backend class that states it to the type checker.

A backend is the one endpoint of its process in a rendezvous directory.  Together with the general code above it
(msgd.messaging), each backend keeps 14 clauses.  docs/architecture.md has their full text; here are their titles.  The
tests carry the same numbers; tests/backends/contract/README.md lists them.

 1. Order and count.  First in, first out between two living processes, each message exactly once.
 2. Size.  Up to `msgd:max message size`, messages arrive whole on every backend.
 3. Never blocks, never drops silently.  A bounded queue, in memory or (tdb) in the file; past the bound, QueueFull.
 4. Dead is dead.  NoSuchProcess at once; nothing of a dead process outlives the next clean-up.
 5. Nobody innocent is touched.  Signals and messages go to the process they are meant for, or nowhere.
 6. The sender is who it says.  The kernel's word on the sender decides; only trusted users are heard.
 7. Fork.  ForkedContext in a child, until reinit().
 8. Bad bytes.  Any garbage is dropped and counted, and costs neither memory nor descriptors.
 9. A raising handler is logged, and the messages behind it are still handled.
10. Broadcast reaches each living process that listens, once.
11. Watch reports the end of a process at once.
12. Many destinations.  Thousands of them work within the limit on descriptors.
13. Threads.  Any thread may send and register; one at a time dispatches.
14. Strangers' locks decide nothing.  Only write locks are claims, and nothing waits for a lock without a limit.

A backend itself is not thread-safe.  The endpoint above it holds a lock around each call, except wait() and wake().
"""

from __future__ import annotations

import abc
import select
import threading
from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from typing import ClassVar, NamedTuple, Protocol

from msgd.backends.spin import Spinner
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import BackendUnavailable
from msgd.linux import wait_readable
from msgd.presence import Presence, RendezvousDirectory
from msgd.results import SendStatus
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

Deliver = Callable[[Message], None]


class PlainSender(Protocol):
    """Sends a message if nothing about it is special, and counts it.

    Returns None, and has done nothing, if the destination is new, full or gone, if the message is long, if another
    thread has the endpoint's lock, or if anything else needs a decision: then send() is to be called.
    """

    node: int
    """The number of this node in its cluster: messages to it are local; NONCLUSTER_VNN if it has none."""

    @property
    def sent(self) -> int:
        """Messages sent."""

    @property
    def sent_bytes(self) -> int:
        """Their data, in bytes."""

    def __call__(
        self, dst: object, src: ServerID, message_type: object, data: object, known_tasks: set[ServerID], /
    ) -> SendStatus | None:
        """`known_tasks`: the addresses that need no check; those of requests never do.  Raises what send() raises."""


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

    gathers: bool = False
    """Whether begin_gathering() and end_gathering() do anything."""

    needs_main_thread: ClassVar[bool] = False
    """Whether only the main thread can wait for messages, because signals announce them."""

    unsent: Sized = ()
    """Not empty while messages are queued, so that flush() has something to do."""

    def __init__(self, config: Config, presence: Presence, drops: Drops) -> None:
        self.config = config
        self.presence = presence
        self.drops = drops
        self.spinner = Spinner()
        """How often wait() looks before it sleeps."""

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
        """Pass received messages to `deliver`, a bounded number of them in each call.  Never blocks.

        `deliver` only keeps the message; handlers run later, outside of this call.  The descriptors in a message that
        it has been given are its to close.
        """

    @abc.abstractmethod
    def wake(self) -> None:
        """Make fileno() readable until the next receive(), which ends a wait().  Any thread may call this."""

    def take_wake(self) -> bool:
        """Take back a wake() that no receive() has seen yet, so that one can wait for something else.

        Returns whether there was one; the caller calls wake() again afterwards.
        """
        return False

    def watch_also(self, fd: int) -> None:
        """Make fileno() readable whenever `fd` is, too.  The fd stays open as long as this backend.

        Raises BackendUnavailable if the transport has no descriptor of that kind.
        """
        raise BackendUnavailable(
            f"messaging type {self.config.messaging_type} cannot be used with clustering = yes: use dgram or stream"
        )

    @abc.abstractmethod
    def poll_for_room(self) -> select.poll:
        """A poll object that reports an event when a destination with a queue may have room, and after wake()."""

    def plain_sender(self, lock: threading.RLock) -> PlainSender | None:
        """The compiled twin of send() for the plain case, which takes the endpoint's lock itself; None without one."""
        return None

    def send_batch(self, dst: ServerID, src: ServerID, messages: Sequence[tuple[int, bytes]]) -> bool:
        """Send several messages, each a type and its data, at once, if that is possible without queueing any.

        Returns False if it is not; then nothing has been sent, and they are to be sent one by one.
        """
        return False

    gathered: Sized = ()
    """Not empty while something is kept between begin_gathering() and flush()."""

    def begin_gathering(self, few: bool = False) -> None:  # noqa: B027 (most transports send at once)
        """From now on messages that this thread sends may be kept until end_gathering(), to save system calls.

        `few`: probably one for each destination.
        """

    def end_gathering(self) -> bool:
        """Keep no more.  Returns whether something was kept, which the next flush() sends.

        To be called without the endpoint's lock.
        """
        return False

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
        """The pids of which this transport keeps something besides the socket and which may be dead.

        Clean-up checks each of them, so a living one does no harm here.
        """
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
