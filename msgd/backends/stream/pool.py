# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Which connections exist: how they are added and ended, how many there may be, and which one goes first.

Rule 1. Ending a connection loses and doubles nothing.  Whoever ends it reads it to its end: every whole frame counts,
and half a frame at the end is thrown away.  The other side learns from its failing write which frames are whole in the
socket, and writes the rest on another connection, from the first byte of the frame that was cut.  No consent is needed.

    Why this is right: shutdown() is atomic.  From then on the other side's writes fail, and what was written before
    stays readable.  So both sides agree on the last byte of the stream without exchanging a message.

Rule 2. A connection that has ended and holds nothing to read is closed at once.  Any other stays in the pool until
the incoming side has read it to its end.

Rule 3. Because of rule 1 any connection can be ended at any time.  One with unsent data or a half-received message is
ended only when no other can be: that saves work, and nothing depends on it.

Rule 4. At most `connection cache` connections are kept for later, by default as many as may exist.  Beyond that the
least recently used idle ones end.

Rule 5. At most `max connections` exist, half of them opened here and half accepted; by default they take half of the
descriptors that this process may open.  Without the two halves, the connections that processes open to each other could
take all of the room; then nobody could accept, and all would wait for ever.  For a new connection an idle one of the
same kind ends, or else one without progress for _STALLED seconds.

Rule 6. A process has one accepted connection.  If it opens a second one, it has ended its first (or is not to be
trusted with two), so the first is ended here too: 1,000 connections of one process are one.

Rule 7. At most `half open connections` accepted connections have not sent their hello.  The oldest ends.

Rule 8. One descriptor is kept in reserve.  It is given up when descriptors run out, so that one more connection can
be accepted and read, and it is taken back when a connection closes.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Iterator
from functools import partial

from msgd.backends.at_once import Step
from msgd.backends.sockets import half_of_descriptors
from msgd.backends.stream.connection import Connection, new_socket
from msgd.backends.stream.peers import Peers
from msgd.backends.stream.poller import Poller
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import TransportError
from msgd.presence import Presence
from msgd.wire.header import MessageDecoder
from msgd.wire.server_id import ServerID
from msgd.wire.stream import FrameReader, Hello

_STALLED = 1.0
"""Seconds without progress after which a connection in the middle of a message may be ended to make room."""


_FEWEST = 4
"""Connections that may exist however few descriptors there are: two of each kind."""


class Pool:
    """The connections by descriptor, those included that have ended and are still to be read."""

    def __init__(self, config: Config, presence: Presence, drops: Drops, poller: Poller, peers: Peers) -> None:
        self._config = config
        self._presence = presence
        self._drops = drops
        self._poller = poller
        self._peers = peers
        self._connections_max = config.max_connections or max(_FEWEST, half_of_descriptors())
        self._cached_max = config.connection_cache or self._connections_max
        self._decoder = MessageDecoder()
        self._stream_numbers = itertools.count(1)
        self._reserve: socket.socket | None = new_socket()
        self.by_fd: dict[int, Connection] = {}
        self.is_closed = False

    def add(self, connected: socket.socket, pid: int) -> Connection:
        """Take in a socket that we have connected to the process `pid`."""
        connection = self._connection(connected, pid, is_ours=True)
        self.by_fd[connection.fd] = connection
        self._poller.watch(connection.fd)
        return connection

    def adding(self, connected: socket.socket, pid: int) -> Step:
        """The step that takes in a socket which we have accepted from the process `pid`."""
        connection = self._connection(connected, pid, is_ours=False)
        with contextlib.suppress(FileExistsError):  # an exception has come behind this
            self._poller.watch(connection.fd)
        return partial(self.by_fd.__setitem__, connection.fd, connection)

    def _connection(self, connected: socket.socket, pid: int, *, is_ours: bool) -> Connection:
        reader = FrameReader(self._decoder, self._config.max_message_size, pid)
        return Connection(connected, pid, reader, self._next_hello, is_ours=is_ours)

    def _next_hello(self) -> Hello:
        return Hello(self._presence.unique_id, next(self._stream_numbers))

    def is_open(self, connection: Connection) -> bool:
        """Whether the connection has not been closed."""
        return self.by_fd.get(connection.fd) is connection

    def is_writer_alive(self, connection: Connection) -> bool:
        """Whether the process that began the other side's stream is alive and still the one with its pid."""
        if connection.hello is None:
            return False
        with contextlib.suppress(TransportError):
            return self._presence.is_alive(ServerID(connection.pid, unique_id=connection.hello.unique_id))
        return False

    # Ending

    def end(self, connection: Connection) -> None:
        """End a connection: neither side writes to it any more.  What can be read of it is still to be read."""
        self._peers.detach(connection)
        if not connection.ended and self.is_open(connection):
            connection.end()
            if not connection.has_unread():
                self.close(connection)

    def close(self, connection: Connection) -> None:
        """Close a connection, whatever it still holds."""
        self._peers.detach(connection)
        if self.is_open(connection):
            del self.by_fd[connection.fd]
            self._poller.unwatch(connection.fd)
            connection.close()
            if self._reserve is None:
                with contextlib.suppress(OSError):
                    self._reserve = new_socket()

    def release_reserve(self) -> bool:
        """Close the reserved descriptor, so that one can be opened.  Returns False if that has been done already."""
        if self._reserve is None:
            return False
        self._reserve.close()
        self._reserve = None
        return True

    # Bounds

    def trim(self, newest: Connection) -> None:
        """End the least recently used idle connections beyond the size of the cache, but not the newest one."""
        cached = [one for one in self.by_fd.values() if not one.ended and (one.hello or one.is_ours)]
        excess = len(cached) - self._cached_max
        if excess > 0:
            candidates = (one for one in self._idle() if one in cached and one is not newest)
            for connection in itertools.islice(candidates, excess):
                self.end(connection)

    def make_room(self, *, ours: bool) -> bool:
        """Make room for one more connection that we open (`ours`) or accept.  Returns False if there is none now."""
        if self._has_room(ours=ours):
            return True
        stalled_since = time.monotonic() - _STALLED
        stalled = (one for one in self.by_fd.values() if not one.ended and one.last_used < stalled_since)
        victim = next((one for one in itertools.chain(self._idle(), stalled) if one.is_ours is ours), None)
        if victim is None:
            return False
        self.end(victim)
        if victim.pid in self._peers.blocked:
            self._poller.wake_after(0)  # the frame that was cut is to be written again
        return self._has_room(ours=ours)

    def _has_room(self, *, ours: bool) -> bool:
        number = sum(one.is_ours is ours for one in self.by_fd.values())
        return number < self._connections_max // 2

    def _idle(self) -> Iterator[Connection]:
        """The connections on which nothing is in flight, the least recently used first."""
        for one in sorted(self.by_fd.values(), key=lambda one: one.last_used):
            if not (one.ended or self._peers.has_unsent(one) or one.is_in_frame or one.has_unread()):
                yield one

    def end_accepted(self, pid: int) -> None:
        """Prepare for one more accepted connection of a process: apply rules 6 and 7."""
        accepted = [one for one in self.by_fd.values() if not one.is_ours and not one.ended]
        for one in accepted:
            if one.pid == pid:
                self.end(one)
        half_open = [one for one in accepted if one.hello is None and not one.ended]
        if len(half_open) >= self._config.half_open_connections:
            oldest = half_open[0]
            self.end(oldest)
            if not self.is_open(oldest):
                self._drops("malformed or forged", f"pid {oldest.pid} has connected and sent nothing")

    def holders_to_end(self, wanted: int) -> Iterator[Connection]:
        """The connections to end so that `wanted` more bytes can be received within `receive buffer bytes`.

        They are in the middle of long messages, and those come first that have waited longest for more.
        """
        holding = [one for one in self.by_fd.values() if one.memory_held]
        excess = sum(one.memory_held for one in holding) + wanted - self._config.receive_buffer_bytes
        for one in sorted(holding, key=lambda one: one.last_used):
            if excess <= 0:
                return
            excess -= one.memory_held
            yield one

    # The end

    def end_all(self) -> None:
        """Shut down every connection, so that the other sides see the end."""
        for connection in self.by_fd.values():
            connection.end()

    def close_all(self) -> None:
        """Close every descriptor without a shutdown; a forked child leaves its parent's connections as they are."""
        self.is_closed = True
        self.release_reserve()
        for connection in self.by_fd.values():
            connection.close()
        self.by_fd.clear()
