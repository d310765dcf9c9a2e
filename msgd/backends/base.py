"""What a transport promises: the Backend ABC, and the outgoing queue that keeps a sender from blocking.

A backend is the one endpoint of its process in a rendezvous directory.  It carries messages of any allowed size to
the endpoints of other processes (its own included), in order, each once; it never blocks in send() or receive(),
never lets an exception out of receive() because of what a peer sent, and drops nothing without telling `drops`.
tests/conformance holds every compiled-in backend to this.
"""

from __future__ import annotations

import abc
import enum
import os
import resource
import select
import socket
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, NamedTuple

from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import NoSuchProcess, QueueFull
from msgd.presence import Presence, RendezvousDirectory
from msgd.presence.lock_file import remove_socket
from msgd.wire.header import Message
from msgd.wire.message_types import type_name
from msgd.wire.server_id import ANY_PROCESS, ServerID

Deliver = Callable[[Message], None]

_CACHED_MAX = 256


class SendStatus(enum.Enum):
    """What became of a message that send() accepted."""

    SENT = "sent"
    """It is in the receiver's queue (the kernel's or the file's)."""
    QUEUED = "queued"
    """It waits in this process and leaves from dispatch, the event loop or close()."""
    MERGED = "merged"
    """An identical message is still pending, and duplicates_allowed was False."""


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


def wait_readable(fd: int, timeout: float | None, watched: int) -> bool:
    """Wait until `fd` or `watched` (-1: there is none) is readable, at most `timeout` seconds; whether `watched` is."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if watched >= 0:
        poll.register(watched, select.POLLIN)
    return any(ready == watched for ready, _ in poll.poll(None if timeout is None else timeout * 1000))


def cached_destinations(descriptors_each: int) -> int:
    """How many processes a transport keeps at hand whom it has sent to; each costs so many file descriptors.

    A broadcast to more than these finds them anew each time.  Together they take at most half of the descriptors that
    this process may have.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return _CACHED_MAX
    return max(1, min(allowed // (2 * descriptors_each), _CACHED_MAX))


class Outgoing(NamedTuple):
    """One queued message: what the log needs to name it, its bytes on the wire, and descriptors of our own.

    `start` stands before the message on the wire; it is apart where a message is too long to be copied behind it.
    """

    dst: ServerID
    type: int
    message: bytes
    fds: tuple[int, ...] = ()
    start: bytes = b""

    @property
    def size(self) -> int:
        """Its bytes on the wire."""
        return len(self.start) + len(self.message)

    @property
    def about_it(self) -> dict[str, object]:
        """The journal's fields about it."""
        return {"PEER_PID": self.dst.pid, "MESSAGE_TYPE": type_name(self.type)}

    def close_fds(self) -> None:
        """Close the duplicated descriptors that ride with the message."""
        for fd in self.fds:
            os.close(fd)


def _duplicate(fds: Collection[int]) -> tuple[int, ...]:
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except OSError:
        for copy in copies:
            os.close(copy)
        raise
    return tuple(copies)


class OutQueue:
    """The messages waiting for one destination, bounded in number and bytes (first in, first out)."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._messages: deque[Outgoing] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def head(self) -> Outgoing:
        """The message to send next."""
        return self._messages[0]

    def has_room(self, length: int) -> bool:
        """Whether a message of `length` bytes may be added; into an empty queue any message may."""
        if not self._messages:
            return True
        return len(self._messages) < self._max_messages and self.bytes + length <= self._max_bytes

    def append(
        self, dst: ServerID, message_type: int, message: bytes, fds: Collection[int], start: bytes = b""
    ) -> None:
        """Queue a message, duplicating its descriptors; QueueFull past the bound."""
        size = len(start) + len(message)
        if not self.has_room(size):
            raise QueueFull(
                f"pid {dst.pid} does not read: {len(self._messages)} messages ({self.bytes} bytes) wait for it,"
                f" the bound is {self._max_messages} messages and {self._max_bytes} bytes"
            )
        self._messages.append(Outgoing(dst, message_type, message, _duplicate(fds), start))
        self.bytes += size

    def holds(self, message: bytes, start: bytes = b"") -> bool:
        """Whether an identical message is waiting."""
        return any(one.message == message and one.start == start and not one.fds for one in self._messages)

    def pop(self) -> None:
        """Remove the head: it has been sent."""
        outgoing = self._messages.popleft()
        self.bytes -= outgoing.size
        outgoing.close_fds()

    def give_up(self, drops: Drops, reason: str) -> int:
        """Drop everything, counting and logging it; the number of messages."""
        number = len(self._messages)
        if number:
            head = self.head
            drops(
                reason, f"to {head.dst}, first of them of type {type_name(head.type)}", number, about_it=head.about_it
            )
        self.discard()
        return number

    def discard(self) -> None:
        """Forget everything: the queue is a forked child's copy, or given up already."""
        while self._messages:
            self.pop()


def bind_socket(unbound: socket.socket, presence: Presence) -> None:
    """Bind under our pid; a socket that is there is a dead process's, since we hold the pid's lock file."""
    name, directory_fd = str(presence.pid), presence.socket_dir_fd
    remove_socket(directory_fd, name)
    unbound.bind(f"{presence.socket_directory}/{name}")
    os.stat(name, dir_fd=directory_fd, follow_symlinks=False)  # fails if the path led elsewhere
    os.chmod(name, 0o777, dir_fd=directory_fd)  # the directory says who may reach it, the credentials who is heard


def check_unique_id(dst: ServerID, unique_id: int) -> None:
    """Raise NoSuchProcess if `dst` names another process than the one that has its pid now."""
    if dst.unique_id != unique_id and dst.unique_id not in ANY_PROCESS:
        raise NoSuchProcess(f"no process {dst}: its pid now belongs to another one, {dst.pid}/{unique_id}")
