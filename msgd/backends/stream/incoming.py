# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How messages arrive: one round of reading, the order of streams, and delivery to the endpoint.

Rule 1. A connection that has ended is read to its end before it is closed (pool.py, rule 1).  Half a frame at the end
is dropped and counted only if the process that wrote it is dead; a living one writes the frame again elsewhere.

Rule 2. Messages from one process keep their order across connections.  Before the hello of a stream is taken, every
older stream of the same process is read to its end, at once.  So no message ever has to be held back.

    Why this is right: a process begins a stream only after its last one has ended, and it numbers them.  So when a
    hello arrives, all of every older stream is here already: on a connection in the pool, or on one in the backlog.

Rule 3. An older stream is in the backlog only if the hello comes on a connection that was opened here; accepted ones
leave the backlog in the order in which they were opened.  So the whole backlog is accepted before such a hello is
taken.

Rule 4. A connection whose bytes cannot be understood is closed unread, and counted.

Rule 5. Long messages that are arriving hold at most `receive buffer bytes`.  Past that, the connection that has waited
longest for more is ended; its process writes the message again.

Rule 6. A long message for which there is no memory is thrown away as it comes, and counted; what is behind it arrives.

Rule 7. A signal's handler may run in the middle of receive(); it may dispatch, close the endpoint and raise.  (Handlers
of messages run later, outside of receive().)  What has been received is in one place all the time: in the connection,
in its reader, or delivered (at_once.py).  A connection is in `_unsettled` as long as anything may be left there.  The
next receive(), an inner one too, begins with these, because no socket reports what has been read already.
"""

from __future__ import annotations

import os
from collections import deque
from functools import partial

from msgd.backends.at_once import head_of, move_all, take_head
from msgd.backends.base import Deliver
from msgd.backends.stream.connecting import Connector
from msgd.backends.stream.connection import Connection
from msgd.backends.stream.listener import Listener
from msgd.backends.stream.poller import Poller
from msgd.backends.stream.pool import Pool
from msgd.drops import Drops
from msgd.errors import MalformedMessage
from msgd.wire.header import Message
from msgd.wire.message_types import type_name
from msgd.wire.stream import LOST_FD, Hello, Lost


class Incoming:
    """The receiving half of the endpoint."""

    def __init__(self, drops: Drops, poller: Poller, pool: Pool, listener: Listener, connector: Connector) -> None:
        self._drops = drops
        self._poller = poller
        self._pool = pool
        self._listener = listener
        self._connector = connector
        self._by_fd = pool.by_fd
        self._unsettled: dict[Connection, None] = {}
        """Connections of which something may have been received and not been delivered."""
        self._unwanted: deque[int] = deque()
        """Descriptors to be closed."""

    def receive(self, deliver: Deliver) -> bool:
        """Deliver what has been received already; then read each connection that is ready once, and accept.

        Returns whether there are new connections.
        """
        for unsettled in tuple(self._unsettled):
            self._settle(unsettled, deliver)
        if self._pool.is_closed:
            return False
        accepted = self._listener.has_accepted and self._listener.accept()
        for fd, _ in self._poller.take_events():
            connection = self._by_fd.get(fd)
            if connection is not None:
                if connection.is_ours and connection.hello is None:
                    accepted |= self._listener.accept_all()
                    if not self._pool.is_open(connection):
                        continue
                self._read(connection, deliver)
            elif fd == self._listener.fd:
                accepted |= self._listener.accept()
            elif fd == self._poller.timer_fd:
                self._listener.resume()
                self._poller.acknowledge_timer()
            if self._pool.is_closed:
                return False
        return accepted

    def discard(self) -> None:
        """Forget what has not been delivered."""
        self._unsettled.clear()

    def _settle(self, connection: Connection, deliver: Deliver) -> None:
        """Go on with what a connection has received already."""
        while self._pool.is_open(connection) and connection.is_unsettled and not self._pool.is_closed:
            self._read(connection, deliver)
        self._unsettled.pop(connection, None)

    def _read(self, connection: Connection, deliver: Deliver) -> bool:
        """Receive once and deliver what that completes.  Returns False if there was nothing to receive."""
        is_left = connection in self._unsettled
        self._unsettled[connection] = None
        try:
            if is_left and connection.is_delivering:
                self._deliver(connection, deliver)
                return True
            if connection.hello is None:
                self._take_hello(connection, deliver)
                if connection.hello is None or not self._pool.is_open(connection):
                    return True
            if connection.reader.long and connection.memory_wanted:
                self._limit_memory(connection.memory_wanted, deliver)
                if not self._pool.is_open(connection):
                    return True
            connection.receive()
        except BlockingIOError:
            return False
        except EOFError:
            self._handle_eof(connection)
        except MalformedMessage as error:
            self._refuse(connection, str(error))
        else:
            self._deliver(connection, deliver)
        return True

    def _limit_memory(self, wanted: int, deliver: Deliver) -> None:
        """Make sure that so many more bytes may be received (rule 5)."""
        for one in self._pool.holders_to_end(wanted):
            self._pool.end(one)
            self._read_to_end(one, deliver)
            if self._pool.is_closed:
                break

    # The order of streams

    def _take_hello(self, connection: Connection, deliver: Deliver) -> None:
        """Set the connection's hello if it has arrived, after delivering what older streams of the process hold."""
        hello = connection.receive_hello()
        if hello is None:
            return
        for older in self._older_streams(connection, hello):
            self._read_to_end(older, deliver)
        if connection.hello is None and not self._pool.is_closed:
            connection.hello = hello
            if not connection.is_ours and not connection.ended:
                self._connector.adopt(connection, hello)

    def _older_streams(self, connection: Connection, hello: Hello) -> list[Connection]:
        """The connections with older streams of the process that has sent `hello`, the oldest first."""
        older = []
        for other in self._by_fd.values():
            if other.pid == connection.pid and other is not connection:
                known = other.hello or other.peek_hello()
                if known is not None and known.unique_id == hello.unique_id and known.number < hello.number:
                    older.append((known.number, other))
        return [other for _, other in sorted(older, key=lambda pair: pair[0])]

    def _read_to_end(self, connection: Connection, deliver: Deliver) -> None:
        """Deliver everything in a stream that has been ended, by its process or here; then it is closed."""
        while not self._pool.is_closed and self._pool.is_open(connection):
            if not self._read(connection, deliver):
                self._refuse(connection, "a newer stream began before this one ended")

    # Delivery

    def _deliver(self, connection: Connection, deliver: Deliver) -> None:
        """Deliver the messages that are complete."""
        reader = connection.reader
        move_all(reader.ready, deliver)
        while reader.lost:
            self._drop_lost(reader.lost)
        if reader.problem:
            self._refuse(connection, reader.problem)
        if not connection.received:
            self._unsettled.pop(connection, None)

    def _drop_lost(self, lost: deque[tuple[Lost, Message]]) -> None:
        """Count the message at the head, and close the descriptors that have come all the same."""
        head = head_of(lost)
        if head is None:
            return  # a signal's handler has dispatched
        reason, message = head
        fds = [fd for fd in message.fds if fd != LOST_FD]
        if take_head(lost, head, (partial(self._unwanted.extend, fds),)):
            detail = f"{type_name(message.type)} from {message.src}"
            if reason is Lost.MEMORY:
                self._drops("no memory left", detail)
            else:
                self._drops("no descriptors left", detail)
        move_all(self._unwanted, os.close)

    # The end of a stream

    def _refuse(self, connection: Connection, problem: str) -> None:
        """Close a connection that cannot be understood, unread, unless a signal's handler has closed it."""
        if not self._pool.is_open(connection):
            return
        self._drops("malformed or forged", f"on a connection of pid {connection.pid}: {problem}")
        self._pool.close(connection)

    def _handle_eof(self, connection: Connection) -> None:
        """Close a connection that has been read to its end, unless a signal's handler has closed it."""
        if not self._pool.is_open(connection):
            return
        if connection.is_in_frame and not self._pool.is_writer_alive(connection):
            self._drops("the rest never came", f"pid {connection.pid} has ended in the middle of a message")
        self._pool.close(connection)
