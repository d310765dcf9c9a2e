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
of messages run later, outside of receive().)  An inner receive() first delivers what the outer one has read.  After a
BaseException the rest is delivered by the next receive(); the timer wakes it up, because no socket reports messages
that have been read already.
"""

from __future__ import annotations

import os

from msgd.backends.base import Deliver
from msgd.backends.stream.connecting import Connector
from msgd.backends.stream.connection import Connection, MessageLost
from msgd.backends.stream.listener import Listener
from msgd.backends.stream.poller import Poller
from msgd.backends.stream.pool import Pool
from msgd.drops import Drops
from msgd.errors import MalformedMessage
from msgd.wire.header import Message
from msgd.wire.message_types import type_name
from msgd.wire.stream import LOST_FD, Hello


class Incoming:
    """The receiving half of the endpoint."""

    def __init__(self, drops: Drops, poller: Poller, pool: Pool, listener: Listener, connector: Connector) -> None:
        self._drops = drops
        self._poller = poller
        self._pool = pool
        self._listener = listener
        self._connector = connector
        self._by_fd = pool.by_fd
        self._undelivered: dict[Connection, None] = {}
        """Connections with messages that have been read and not delivered: an outer receive() is about to do so."""

    def receive(self, deliver: Deliver) -> bool:
        """Deliver what an outer receive() has read; then read each connection that is ready once, and accept.

        Returns whether there are new connections.
        """
        for undelivered in tuple(self._undelivered):
            self._deliver(undelivered, deliver)
        if self._pool.is_closed:
            return False
        accepted = False
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
                self._poller.acknowledge_timer()
                self._listener.resume()
            if self._pool.is_closed:
                return False
        return accepted

    def discard(self) -> None:
        """Forget what has not been delivered."""
        self._undelivered.clear()

    def _read(self, connection: Connection, deliver: Deliver) -> bool:
        """Receive once and deliver what that completes.  Returns False if there was nothing to receive."""
        try:
            if connection.hello is None:
                self._take_hello(connection, deliver)
                if connection.hello is None or not self._pool.is_open(connection):
                    return True
            if connection.reader.long and connection.memory_wanted:
                self._limit_memory(connection.memory_wanted, deliver)
                if not self._pool.is_open(connection):
                    return True
            reader = connection.reader
            if not reader.is_compiled or reader.long:
                connection.receive()
            elif connection.receive_plain(deliver):
                return True
        except BlockingIOError:
            return False
        except EOFError:
            self._handle_eof(connection)
        except MalformedMessage as error:
            self._refuse(connection, str(error))
        except MessageLost as lost:
            self._drop_lost(lost.message)
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
        """Deliver the messages that were received last."""
        pool = self._pool
        self._undelivered[connection] = None
        try:
            for message in connection.messages:
                if message.fds:
                    self._deliver_with_fds(message, deliver)
                else:
                    deliver(message)
                if pool.is_closed:
                    return
        except MalformedMessage as error:
            self._refuse(connection, str(error))
        except BaseException:
            if not pool.is_closed:
                self._poller.wake_after(0)
            raise
        self._undelivered.pop(connection, None)

    def _deliver_with_fds(self, message: Message, deliver: Deliver) -> None:
        """Deliver a message with its descriptors, which are its own from now on, unless some got lost."""
        if LOST_FD not in message.fds:
            deliver(message)
            return
        self._drops("no descriptors left", f"{type_name(message.type)} from {message.src}")
        for fd in message.fds:
            if fd != LOST_FD:
                os.close(fd)

    def _drop_lost(self, message: Message) -> None:
        """Count a long message for which there was no memory; its descriptors have come all the same."""
        self._drops("no memory left", f"{type_name(message.type)} from {message.src}")
        for fd in message.fds:
            if fd != LOST_FD:
                os.close(fd)

    # The end of a stream

    def _refuse(self, connection: Connection, problem: str) -> None:
        """Close a connection that cannot be understood, unread."""
        self._drops("malformed or forged", f"on a connection of pid {connection.pid}: {problem}")
        self._pool.close(connection)

    def _handle_eof(self, connection: Connection) -> None:
        """Close a connection that has been read to its end."""
        if connection.is_in_frame and not self._pool.is_writer_alive(connection):
            self._drops("the rest never came", f"pid {connection.pid} has ended in the middle of a message")
        self._pool.close(connection)
