# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How messages leave: they are written at once, gathered while handlers run, or queued where the socket is full.

Gathering

Rule 1. What handlers send is gathered, and written once for each connection when the handlers have run.  Messages of
other threads are not: nobody knows how long the handlers will take.  In a round with few messages, the first message
for each connection is written at once, since it is mostly the only one; not if it may be merged with another.

Rule 2. Before the first gathered message a write of no bytes tells whether the process still reads, so that send()
raises NoSuchProcess in time.

Rule 3. A message with descriptors is never gathered, since descriptors ride on the first byte of their frame.

The queue

Rule 4. What the socket does not take waits in the queue, and flush() writes it when the socket polls writable.

Rule 5. When a connection ends, a frame that it has cut is written again from its first byte on the next connection.
Its descriptors go with it again: the queue holds duplicates of them until the frame is whole in the socket.

Rule 6. A living process may end _REFUSALS_MAX connections in a row with the same frame cut; then the frame is
dropped.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Collection, Sequence

from msgd.backends.base import PlainSender
from msgd.backends.out_queue import QueuedMessage
from msgd.backends.stream.connecting import Connector
from msgd.backends.stream.connection import Connection
from msgd.backends.stream.peers import Peer, Peers
from msgd.backends.stream.poller import Poller
from msgd.backends.stream.pool import Pool
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import NoSuchProcess, TransportError, system_error
from msgd.linux import new_poll
from msgd.native import native
from msgd.results import SendStatus
from msgd.wire.header import MessageDecoder
from msgd.wire.message_types import type_name
from msgd.wire.server_id import ANY_UNIQUE_ID, ServerID
from msgd.wire.stream import FRAME_SIZE, HEADER_OFFSET, pack_frame

_COPIED_MAX = 4096
"""Bytes of frames that are put together in one buffer, which costs less than two; longer data is never copied."""

_ATTEMPTS = 4
"""Connections that send() tries one after the other.  If a process ends them as fast, the message is queued."""

_REFUSALS_MAX = 16


class Outgoing:
    """The sending half of the endpoint."""

    __slots__ = (
        "_blocked", "_by_pid", "_connector", "_decoder", "_depth", "_drops", "_first_at_once", "_gather_bytes",
        "_gather_messages", "_gatherer", "_max_message_size", "_peers", "_poller", "_pool", "_round", "gathering",
    )  # fmt: skip

    def __init__(
        self, config: Config, drops: Drops, poller: Poller, peers: Peers, pool: Pool, connector: Connector
    ) -> None:
        self._drops = drops
        self._poller = poller
        self._peers = peers
        self._pool = pool
        self._connector = connector
        self._by_pid = peers.by_pid
        self._blocked = peers.blocked
        self._depth = 0
        """How many begin_gathering() are in force, one inside the other."""
        self._gatherer = 0
        """The thread whose messages are gathered, as threading.get_ident() gives it."""
        self._first_at_once = False
        self._round = 0
        """The number of this round, if the first message for each connection is written at once."""
        self.gathering: list[Peer] = []
        """The peers with gathered messages."""
        self._gather_messages = config.send_queue_messages
        self._gather_bytes = min(config.gather_bytes, config.send_queue_bytes)
        self._max_message_size = config.max_message_size
        self._decoder = MessageDecoder()

    # Sending

    def send(
        self,
        dst: ServerID,
        src: ServerID,
        message_type: int,
        data: bytes,
        fds: Collection[int] = (),
        duplicates_allowed: bool = True,
    ) -> SendStatus:
        """Send one message, gather it or queue it; Backend.send() says what it raises."""
        peer = self._by_pid.get(dst.pid)
        if peer is not None and dst.pid in self._blocked:
            self._flush(peer)
            peer = self._by_pid.get(dst.pid)
        if peer is None or (dst.unique_id != peer.unique_id and dst.unique_id not in ANY_UNIQUE_ID):
            peer = self._connector.find(dst)
        size = FRAME_SIZE + len(data)
        start, rest = pack_frame(dst, src, message_type, len(data), len(fds)), data
        if size <= _COPIED_MAX:
            start, rest = b"", start + data
        written = 0
        if peer.pid not in self._blocked:
            if self._depth and not fds and size <= self._gather_bytes and self._gatherer == threading.get_ident():
                if not (self._first_at_once and duplicates_allowed) or peer.written_in == self._round:
                    return self._gather(peer, dst, start + rest, duplicates_allowed)
                peer.written_in = self._round
            if peer.gathered:
                self._write_gathered(peer)
                return self.send(dst, src, message_type, data, fds, duplicates_allowed)
            try:
                peer, written = self._write(peer, dst, (start, rest) if start else (rest,), fds)
            except NoSuchProcess:
                raise
            except OSError as error:
                raise TransportError(f"sending to {dst}: {error.strerror}") from error
            if written == size:
                return SendStatus.SENT
        if not duplicates_allowed and not fds and peer.queue.holds(rest, start):
            return SendStatus.MERGED
        try:
            peer.queue.append(dst, message_type, bytes(rest), fds, start)
        except (OSError, MemoryError) as error:
            if written and peer.connection is not None:
                self._pool.end(peer.connection)  # nobody will write the rest of the frame
            raise system_error(f"queueing a message to {dst}", error) from error
        if written:
            peer.sent_bytes = written
        self._block(peer)
        return SendStatus.QUEUED

    def plain_sender(self, lock: threading.RLock) -> PlainSender | None:
        """See Backend.plain_sender."""
        if native is None:
            return None
        sender: PlainSender = native.frame_sender(
            lock, ServerID, self._by_pid, SendStatus.SENT, SendStatus.QUEUED, Peer, Connection, self,
            self._blocked, self._max_message_size,
        )  # fmt: skip
        return sender

    def queue_rest(self, peer: Peer, dst: ServerID, message_type: int, frame: bytes, written: int) -> SendStatus:
        """Queue a frame of which the socket has taken the first bytes; nothing waits in front of it."""
        peer.queue.append(dst, message_type, frame, ())
        peer.sent_bytes = written
        self._block(peer)
        return SendStatus.QUEUED

    def _write(
        self, peer: Peer, dst: ServerID, buffers: Sequence[bytes], fds: Collection[int] = ()
    ) -> tuple[Peer, int]:
        """Write to the process `dst`, on a new connection if it has ended the one in use.

        Returns the peer, which is another one if its pid has been reused, and the bytes taken.  Raises NoSuchProcess,
        OSError.
        """
        for _ in range(_ATTEMPTS):
            connection = peer.connection
            if connection is None:
                break
            try:
                return peer, connection.write(buffers, fds)
            except BlockingIOError:
                break
            except ConnectionError:
                self._pool.end(connection)
                peer = self._connector.find(dst)
        return peer, 0

    # Gathering

    def begin_gathering(self, few: bool = False) -> None:
        """Handlers are about to run: gather what this thread sends from now on; see Backend.begin_gathering()."""
        self._gatherer = threading.get_ident()
        self._depth += 1
        self._first_at_once = few
        self._round += few

    def end_gathering(self) -> bool:
        """The handlers have run.  Returns whether something was gathered, which flush() writes."""
        self._depth -= 1
        return bool(self.gathering)

    def reconnect_blocked(self) -> None:
        """Connect to the processes that have lost a connection while messages wait for them."""
        if self._blocked:
            for peer in tuple(self._blocked.values()):
                if peer.connection is None:
                    self._flush(peer)

    def _gather(self, peer: Peer, dst: ServerID, frame: bytes, duplicates_allowed: bool) -> SendStatus:
        """Keep a handler's message until the end of the round, or until there are enough of them for a write."""
        gathered = peer.gathered
        if not gathered:
            peer, _ = self._write(peer, dst, (b"",))
            gathered = peer.gathered
            self.gathering.append(peer)
        elif not duplicates_allowed and frame in gathered:
            return SendStatus.MERGED
        gathered.append(frame)
        peer.gathered_bytes += len(frame)
        if peer.gathered_bytes >= self._gather_bytes or len(gathered) >= self._gather_messages:
            self._write_gathered(peer)
        return SendStatus.QUEUED

    def _write_gathered(self, peer: Peer) -> None:
        """Write what was gathered for a process; what the socket does not take goes to the queue."""
        frames, peer.gathered, peer.gathered_bytes = peer.gathered, [], 0
        connection, written = peer.connection, 0
        if connection is not None and frames:
            try:
                written = connection.write((b"".join(frames),))
            except ConnectionError:
                connection = None
            except OSError:
                pass  # no room in the socket, or no memory in the kernel: flush() tries again
        for frame in frames:
            if written >= len(frame):
                written -= len(frame)
            else:
                if written:
                    peer.sent_bytes, written = written, 0
                header = self._decoder.decode(frame, HEADER_OFFSET)
                peer.queue.append(header.dst, header.type, frame, ())
        if peer.queue:
            self._block(peer)
            if connection is None:
                if peer.connection is not None:
                    self._pool.end(peer.connection)
                self._flush(peer)

    # The queue

    def flush(self, timeout: float = 0.0) -> None:
        """Write what waits, as far as the sockets take it; with a `timeout`, first wait until one of them does."""
        while self.gathering:
            self._write_gathered(self.gathering.pop())
        if not self._blocked:
            return
        if timeout:
            self.poll_for_room().poll(timeout * 1000)
        for peer in list(self._blocked.values()):
            self._flush(peer)

    def poll_for_room(self) -> select.poll:
        """See Backend.poll_for_room."""
        poll = new_poll()
        poll.register(self._poller.wake_up, select.POLLIN)
        for peer in self._blocked.values():
            if peer.connection is not None:
                poll.register(peer.connection.fd, select.POLLOUT)
            else:
                poll.register(self._poller.timer_fd, select.POLLIN)
        return poll

    def _flush(self, peer: Peer) -> None:
        """Write the queue of a process, as far as it takes it."""
        queue = peer.queue
        while queue:
            if peer.connection is None and not self._connector.reconnect(peer):
                return
            connection, head = peer.connection, queue.head
            assert connection is not None
            try:
                peer.sent_bytes += connection.write(
                    _unsent_part(head, peer.sent_bytes), () if peer.sent_bytes else head.fds
                )
            except BlockingIOError:
                return
            except ConnectionError as error:
                self._pool.end(connection)
                peer.refusals += 1
                if peer.refusals > _REFUSALS_MAX:
                    self._drop_head(peer, f"it ends each connection, {error.strerror}")
            except OSError as error:
                if peer.sent_bytes:
                    self._pool.end(connection)
                self._drop_head(peer, error.strerror)
            else:
                if peer.sent_bytes == head.size:
                    self._pop(peer)
        self._unblock(peer)

    def _drop_head(self, peer: Peer, problem: str | None) -> None:
        head = peer.queue.head
        detail = f"to {head.dst} of type {type_name(head.type)}: {problem}"
        self._drops("sending failed", detail, about_it=head.about_it)
        self._pop(peer)

    def _pop(self, peer: Peer) -> None:
        peer.queue.pop()
        peer.sent_bytes = peer.refusals = 0

    def _block(self, peer: Peer) -> None:
        if peer.pid not in self._blocked:
            self._blocked[peer.pid] = peer
            if peer.connection is not None:
                self._poller.set_writable(peer.connection.fd, enabled=True)

    def _unblock(self, peer: Peer) -> None:
        self._blocked.pop(peer.pid, None)
        if peer.connection is not None:
            self._poller.set_writable(peer.connection.fd, enabled=False)
        else:
            del self._by_pid[peer.pid]

    def give_up(self) -> int:
        """Drop everything that is queued, counting and logging it.  Returns the number of messages."""
        number = 0
        for peer in tuple(self._blocked.values()):
            if peer.connection is not None:
                self._pool.end(peer.connection)
            number += peer.queue.give_up(self._drops, "not taken before close")
            self._unblock(peer)
        return number

    def discard(self) -> None:
        """Forget what waits without a word."""
        self.gathering.clear()
        self._peers.discard()


def _unsent_part(queued: QueuedMessage, sent: int) -> tuple[bytes | memoryview, ...]:
    """What is still to be written of a queued message, of which `sent` bytes have been."""
    missing = len(queued.start) - sent
    if missing > 0:
        return memoryview(queued.start)[sent:], queued.message
    return (memoryview(queued.message)[-missing:],)
