# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The table of the processes this one writes to, and what waits for each of them.

Rule 1. A peer is in the table while it has a connection that is written to, or messages that wait, or both.

Rule 2. A message waits in one of two places.  `gathered` holds what handlers have sent in this round of dispatch;
`queue` holds what the socket did not take.  Nothing is gathered while the queue holds anything, so the two never
compete for the order of messages.

Rule 3. `blocked` lists exactly the peers whose queue is not empty.

Rule 4. `sent_bytes` counts the bytes of the queue's head that the present connection has taken.  It starts again at 0
on another connection, because the reader throws away half a frame at the end of a stream.
"""

from __future__ import annotations

from msgd.backends.base import BackendStatistics
from msgd.backends.out_queue import OutQueue
from msgd.backends.stream.connection import Connection
from msgd.config import Config
from msgd.drops import Drops


class Peer:
    """Another process, or this one: the connection it is written to on, and what waits for it."""

    __slots__ = (
        "connection", "gathered", "gathered_bytes", "pid", "queue", "refusals", "retry_at", "sent_bytes", "unique_id",
        "written_in",
    )  # fmt: skip

    def __init__(self, pid: int, unique_id: int, queue: OutQueue) -> None:
        self.pid = pid
        self.unique_id = unique_id
        self.connection: Connection | None = None
        self.queue = queue
        self.sent_bytes = 0
        """Bytes of the queue's head that the connection has taken."""
        self.gathered: list[bytes] = []
        """Frames sent by handlers in this round of dispatch."""
        self.gathered_bytes = 0
        self.written_in = 0
        """The last round with few messages in which something was written at once."""
        self.refusals = 0
        """Connections in a row that the process has ended with the queue's head cut."""
        self.retry_at = 0.0
        """When to connect again after a full backlog, on the monotonic clock."""

    @property
    def pending(self) -> int:
        """The number of messages that wait."""
        return len(self.queue) + len(self.gathered)


class Peers:
    """The peers by pid.  The outgoing side changes the tables; the pool takes away connections that end."""

    def __init__(self, config: Config, drops: Drops) -> None:
        self._config = config
        self._drops = drops
        self.by_pid: dict[int, Peer] = {}
        self.blocked: dict[int, Peer] = {}

    def new(self, pid: int, unique_id: int) -> Peer:
        """Make a peer, which is not in the table yet."""
        return Peer(pid, unique_id, OutQueue(self._config.send_queue_messages, self._config.send_queue_bytes))

    def has_unsent(self, connection: Connection) -> bool:
        """Whether messages wait that are to be written on this connection."""
        peer = self.by_pid.get(connection.pid)
        return peer is not None and peer.connection is connection and peer.pending > 0

    def detach(self, connection: Connection) -> None:
        """Write no more on this connection; a frame that it has cut goes on another from its first byte."""
        peer = self.by_pid.get(connection.pid)
        if peer is not None and peer.connection is connection:
            peer.connection = None
            peer.sent_bytes = 0
            if not peer.pending:
                del self.by_pid[peer.pid]

    def remove(self, peer: Peer) -> None:
        """Remove a process that is gone, and drop what waits for it."""
        del self.by_pid[peer.pid]
        self.blocked.pop(peer.pid, None)
        if peer.gathered:
            self._drops("the destination is gone", f"to pid {peer.pid}", len(peer.gathered))
            peer.gathered, peer.gathered_bytes = [], 0
        peer.queue.give_up(self._drops, "the destination is gone")

    def pending(self, pid: int) -> int:
        """The number of messages that wait for a process."""
        peer = self.by_pid.get(pid)
        return peer.pending if peer is not None else 0

    def statistics(self) -> BackendStatistics:
        """Messages and bytes that wait, and the number of processes they wait for."""
        waiting = [peer for peer in self.by_pid.values() if peer.pending]
        return BackendStatistics(
            sum(peer.pending for peer in waiting),
            sum(peer.queue.bytes + peer.gathered_bytes for peer in waiting),
            len(waiting),
        )

    def discard(self) -> None:
        """Forget everything without a word: the endpoint is closed, or this is a forked child's copy."""
        for peer in self.by_pid.values():
            peer.queue.discard()
        self.by_pid.clear()
        self.blocked.clear()
