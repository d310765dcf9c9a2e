"""AF_UNIX streams: connections that carry messages both ways, kept in a cache.

A connection is two streams, one each way (msgd/wire/stream.py), and a process writes to another on one connection at
a time: the one it opened, or, if the other was first, the one it accepted.  SO_PEERCRED tells whose connection it is
before a byte of it is read.

Ending a connection loses and doubles nothing.  shutdown() is atomic: from then on the other side's writes fail, what
was written before stays readable.  So whoever ends a connection reads it to its end, every whole frame in it counts,
and half a frame at the end is thrown away; the other side learns from the failing write exactly which frames are whole
in the socket, and writes the rest, from the first byte of a frame that was cut, on a new connection.  No consent is
needed, so the least recently used connection can go at any time, and so can any other when memory or descriptors are
short.  It is still never one with unsent data or a half-received message while another can go: that saves work.

Order across connections.  A process begins a stream to another only after its stream before is ended, and numbers
them.  When a hello comes, the older stream, if it has not been read to its end yet, is all there: it is on a known
connection, or on one that waits to be accepted, which is why the backlog is accepted before the hello on a connection
of our own is taken.  So the older streams are read to their ends first, at once; nothing needs to be held back.

Two processes that connect to each other at the same time keep the connection opened by the lower pid: the other
process ends its own when it accepts that one, and goes on there.  A process that opens a second connection has ended
its first (or is not to be trusted with two): the first is ended here, too, so 1,000 connections of one process are one.

Gathering.  What handlers send while receive() runs is written once per connection at its end.  A write of nothing
before the first such message tells whether the receiver still lives, so that NoSuchProcess is raised in time.

Descriptors ride on the first byte of their frame and take no part in gathering; a frame that is repeated takes them
along again, as the queue holds duplicates until the frame is whole in the socket.

A full backlog (EAGAIN) is the one state that no descriptor tells the end of: a timer then makes fileno() readable.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial

from msgd.backends.base import Backend, BackendStatistics, Deliver
from msgd.backends.out_queue import Outgoing, OutQueue
from msgd.backends.sockets import bind_socket, check_unique_id
from msgd.backends.spin import Spinner
from msgd.backends.stream.connection import Connection
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import MalformedMessage, NoSuchProcess, TransportError
from msgd.linux import Credentials, TimerFd
from msgd.presence import Presence
from msgd.presence.socket_path import remove_socket
from msgd.results import SendStatus
from msgd.wire.header import Message, MessageDecoder
from msgd.wire.message_types import type_name
from msgd.wire.server_id import ANY_PROCESS, ServerID
from msgd.wire.stream import FRAME_SIZE, HEADER_OFFSET, LOST_FD, FrameReader, Hello, pack_frame

_BACKLOG = 4096
"""Connections that wait to be accepted; the kernel's own bound (net.core.somaxconn) is the same by default."""

_EVENTS_A_ROUND = 32
_ACCEPTS_A_ROUND = 64
"""receive() returns after so many connections, so that a flood does not keep dispatch from its other work."""

_COPIED_MAX = 4096
"""Bytes of frames that are put together in one buffer, which costs less than two; longer data is never copied."""

_ATTEMPTS = 4
"""Connections send() tries one after the other; a process that ends them that fast gets the message from flush()."""

_REFUSALS_MAX = 16
"""Connections a living process may end one after the other with the same frame cut before that frame is given up."""

_RETRY = 0.01
"""Seconds until a process whose backlog was full, or our own lack of descriptors, is looked at again."""

_STALLED = 1.0
"""Seconds without progress after which a connection in the middle of a message may be ended to make room."""

_NOBODY_THERE = frozenset((errno.ENOENT, errno.ECONNREFUSED, errno.EPROTOTYPE))


class _Peer:
    """Another process (or this one): where to write to it, and what waits for it.

    It has a connection, or something that waits, or both.
    """

    __slots__ = (
        "connection", "gathered", "gathered_bytes", "pid", "queue", "refusals", "retry_at", "sent_bytes", "unique_id",
    )  # fmt: skip

    def __init__(self, pid: int, unique_id: int, queue: OutQueue) -> None:
        self.pid = pid
        self.unique_id = unique_id
        self.connection: Connection | None = None
        self.queue = queue
        self.sent_bytes = 0
        """Bytes of the queue's head that the connection has taken."""
        self.gathered: list[bytes] = []
        """Frames of this round of receive(); there are none while the queue holds any."""
        self.gathered_bytes = 0
        self.refusals = 0
        self.retry_at = 0.0


class StreamBackend(Backend):
    """The stream endpoint of this process."""

    def __init__(self, config: Config, presence: Presence, drops: Drops) -> None:
        super().__init__(config, presence, drops)
        self._decoder = MessageDecoder()
        self._peers: dict[int, _Peer] = {}
        self._blocked: dict[int, _Peer] = {}
        self._gathering: list[_Peer] = []
        self._gather_bytes = min(config.gather_bytes, config.send_queue_bytes)
        self._connections: dict[int, Connection] = {}
        self._stream_numbers = itertools.count(1)
        self._undelivered: dict[Connection, None] = {}
        """Connections of which not all that was received is delivered: an outer dispatch is about to."""
        self._rounds = 0
        """How many receive() calls are running, one inside the other."""
        self._ready: list[tuple[int, int]] = []
        self._closed = False
        self._epoll = select.epoll()
        self._looks = Spinner()
        self._look = partial(self._epoll.poll, 0, _EVENTS_A_ROUND)
        self._timer = TimerFd()
        self._listener = _new_socket()
        self._reserve: socket.socket | None = _new_socket()
        """Let go of when descriptors run out, so that one more connection can be accepted and read."""
        try:
            bind_socket(self._listener, presence)
            self._listener.listen(_BACKLOG)
            self._epoll.register(self._listener, select.EPOLLIN)
            self._epoll.register(self._timer, select.EPOLLIN)
        except OSError as error:
            self.abandon()
            raise TransportError(f"{presence.socket_directory}/{presence.pid}: {error.strerror}") from error

    def fileno(self) -> int:
        return self._epoll.fileno()

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
        peer = self._peers.get(dst.pid)
        if self._blocked and peer is not None and peer.queue:
            self._flush(peer)
            peer = self._peers.get(dst.pid)
        if peer is None or (dst.unique_id != peer.unique_id and dst.unique_id not in ANY_PROCESS):
            peer = self._find(dst)
        size = FRAME_SIZE + len(data)
        start, rest = pack_frame(dst, src, message_type, len(data), len(fds)), data
        if size <= _COPIED_MAX:
            start, rest = b"", start + data
        written = 0
        if not self._blocked or not peer.queue:
            if self._rounds and not fds and size <= self._gather_bytes:
                return self._gather(peer, dst, start + rest, duplicates_allowed)
            if peer.gathered:
                self._write_gathered(peer)
                return self.send(dst, src, message_type, data, fds, duplicates_allowed=duplicates_allowed)
            try:
                peer, written = self._write(peer, dst, (start, rest) if start else (rest,), fds)
            except OSError as error:
                raise TransportError(f"sending to {dst}: {error.strerror}") from error
            if written == size:
                return SendStatus.SENT
        if not duplicates_allowed and not fds and peer.queue.holds(rest, start):
            return SendStatus.MERGED
        try:
            peer.queue.append(dst, message_type, bytes(rest), fds, start)
        except OSError as error:
            if written and peer.connection is not None:
                self._end(peer.connection)  # the frame that is cut now will not be repeated
            raise TransportError(f"queueing a message to {dst}: {error.strerror}") from error
        if written:
            peer.sent_bytes = written
        self._block(peer)
        return SendStatus.QUEUED

    def _gather(self, peer: _Peer, dst: ServerID, frame: bytes, duplicates_allowed: bool) -> SendStatus:
        """Keep a handler's message for the end of the round, or until there are enough of them for a write."""
        gathered = peer.gathered
        if not gathered:
            peer, _ = self._write(peer, dst, (b"",))
            gathered = peer.gathered
            self._gathering.append(peer)
        elif not duplicates_allowed and frame in gathered:
            return SendStatus.MERGED
        gathered.append(frame)
        peer.gathered_bytes += len(frame)
        if peer.gathered_bytes >= self._gather_bytes or len(gathered) >= self.config.send_queue_messages:
            self._write_gathered(peer)
        return SendStatus.QUEUED

    def _write(
        self, peer: _Peer, dst: ServerID, buffers: Sequence[bytes], fds: Collection[int] = ()
    ) -> tuple[_Peer, int]:
        """Write to the process `dst`, on a new connection if it has ended the one in use; who it is, bytes taken.

        Raises NoSuchProcess, OSError.
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
                self._end(connection)
                peer = self._find(dst)
        return peer, 0

    def _write_gathered(self, peer: _Peer) -> None:
        """Write what handlers have sent to a process; what it does not take goes to its queue."""
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
                    self._end(peer.connection)
                self._flush(peer)

    def flush(self, timeout: float = 0.0) -> None:
        while self._gathering:
            self._write_gathered(self._gathering.pop())
        if not self._blocked:
            return
        if timeout:
            self._wait_for_room(timeout)
        for peer in list(self._blocked.values()):
            self._flush(peer)

    def _wait_for_room(self, timeout: float) -> None:
        poll = select.poll()
        for peer in self._blocked.values():
            if peer.connection is not None:
                poll.register(peer.connection.fd, select.POLLOUT)
            else:
                poll.register(self._timer, select.POLLIN)
        poll.poll(timeout * 1000)

    def _flush(self, peer: _Peer) -> None:
        """Write what the process's queue holds, as far as it takes it."""
        queue = peer.queue
        while queue:
            if peer.connection is None and not self._reconnect(peer):
                return
            connection, head = peer.connection, queue.head
            assert connection is not None
            try:
                peer.sent_bytes += connection.write(_rest(head, peer.sent_bytes), () if peer.sent_bytes else head.fds)
            except BlockingIOError:
                return
            except ConnectionError as error:
                self._end(connection)
                peer.refusals += 1
                if peer.refusals > _REFUSALS_MAX:
                    self._drop_head(peer, f"its connections are ended, {error.strerror}")
            except OSError as error:
                if peer.sent_bytes:
                    self._end(connection)
                self._drop_head(peer, error.strerror)
            else:
                if peer.sent_bytes == head.size:
                    self._pop(peer)
        self._unblock(peer)

    def _drop_head(self, peer: _Peer, problem: str | None) -> None:
        head = peer.queue.head
        self.drops("sending failed", f"to {head.dst} of type {type_name(head.type)}: {problem}", about_it=head.about_it)
        self._pop(peer)

    def _pop(self, peer: _Peer) -> None:
        peer.queue.pop()
        peer.sent_bytes = peer.refusals = 0

    def _block(self, peer: _Peer) -> None:
        if peer.pid not in self._blocked:
            self._blocked[peer.pid] = peer
            if peer.connection is not None:
                self._epoll.modify(peer.connection.fd, select.EPOLLIN | select.EPOLLOUT)

    def _unblock(self, peer: _Peer) -> None:
        self._blocked.pop(peer.pid, None)
        if peer.connection is not None:
            self._epoll.modify(peer.connection.fd, select.EPOLLIN)
        else:
            del self._peers[peer.pid]

    # Peers and connections

    def _find(self, dst: ServerID) -> _Peer:
        """The process `dst`, by what its lock file says now, connected; NoSuchProcess if it is not here."""
        process = self.presence.process(dst.pid)
        peer = self._peers.get(dst.pid)
        if peer is not None and (process is None or process.unique_id != peer.unique_id):
            self._forget(peer)
            peer = None
        if process is None:
            raise _no_such_process(dst.pid)
        check_unique_id(dst, process.unique_id)
        if peer is None:
            peer = self._new_peer(process.pid, process.unique_id)
        if peer.connection is None and not peer.queue:
            self._connect(peer)
        self._peers[dst.pid] = peer
        return peer

    def _new_peer(self, pid: int, unique_id: int) -> _Peer:
        return _Peer(pid, unique_id, OutQueue(self.config.send_queue_messages, self.config.send_queue_bytes))

    def _forget(self, peer: _Peer) -> None:
        """The process is gone: give up what waits for it."""
        del self._peers[peer.pid]
        self._blocked.pop(peer.pid, None)
        if peer.gathered:
            self.drops("the destination is gone", f"to pid {peer.pid}", len(peer.gathered))
            peer.gathered, peer.gathered_bytes = [], 0
        peer.queue.give_up(self.drops, "the destination is gone")
        if peer.connection is not None:
            self._end(peer.connection)

    def _connect(self, peer: _Peer) -> bool:
        """Connect to a process; False if that must wait.  Raises NoSuchProcess, TransportError."""
        if not self._make_room(ours=True):
            self._retry_later(peer)
            return False
        connected = None
        try:
            connected = _new_socket()
            connected.connect(f"/proc/self/fd/{self.presence.socket_dir_fd}/{peer.pid}")
            pid, uid, _ = Credentials.of_peer(connected)
        except OSError as error:
            if connected is not None:
                connected.close()
            if error.errno == errno.EAGAIN:
                self._retry_later(peer)
                return False
            if error.errno in _NOBODY_THERE:
                raise _no_such_process(peer.pid) from None
            raise TransportError(f"connecting to pid {peer.pid}: {error.strerror}") from error
        if pid != peer.pid or uid not in self.presence.trusted_uids:
            connected.close()
            raise NoSuchProcess(f"at the socket of pid {peer.pid} listens pid {pid}, uid {uid}")
        self._use(peer, self._add(connected, pid, is_ours=True))
        return True

    def _reconnect(self, peer: _Peer) -> bool:
        """Connect to a process for which messages wait; False if that must wait, or if it is gone."""
        if time.monotonic() < peer.retry_at:
            return False
        try:
            process = self.presence.process(peer.pid)
            if process is not None and process.unique_id == peer.unique_id:
                return self._connect(peer)
        except NoSuchProcess:
            pass
        except TransportError:
            self._retry_later(peer)  # descriptors or memory are short, which passes
            return False
        self._forget(peer)
        return False

    def _retry_later(self, peer: _Peer) -> None:
        peer.retry_at = time.monotonic() + _RETRY
        self._timer.start(_RETRY)

    def _add(self, connected: socket.socket, pid: int, *, is_ours: bool) -> Connection:
        reader = FrameReader(self._decoder, self.config.max_message_size, pid)
        connection = Connection(connected, pid, reader, self._next_hello, is_ours=is_ours)
        self._connections[connection.fd] = connection
        self._epoll.register(connection.fd, select.EPOLLIN)
        return connection

    def _next_hello(self) -> Hello:
        return Hello(self.presence.unique_id, next(self._stream_numbers))

    def _use(self, peer: _Peer, connection: Connection) -> None:
        """Write to the process on this connection from now on."""
        peer.connection = connection
        self._peers[peer.pid] = peer
        if peer.pid in self._blocked:
            self._epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)
        self._evict(connection)

    def _evict(self, newest: Connection) -> None:
        """End the least recently used idle connections beyond the cache's size."""
        cached = [one for one in self._connections.values() if not one.ended and (one.hello or one.is_ours)]
        excess = len(cached) - self.config.connection_cache
        if excess > 0:
            candidates = (one for one in self._idle() if one in cached and one is not newest)
            for connection in itertools.islice(candidates, excess):
                self._end(connection)

    def _make_room(self, *, ours: bool) -> bool:
        """Whether there is room for one more connection that we open or accept; if not, end an idle or stalled one.

        Each of the two kinds has half of the room: where the connections that processes open to each other took all of
        it, nobody could accept, and all would wait for ever.
        """
        if self._has_room(ours=ours):
            return True
        stalled_since = time.monotonic() - _STALLED
        stalled = (one for one in self._connections.values() if not one.ended and one.last_used < stalled_since)
        victim = next((one for one in itertools.chain(self._idle(), stalled) if one.is_ours is ours), None)
        if victim is None:
            return False
        self._end(victim)
        if victim.pid in self._blocked:
            self._timer.start(0)  # what was cut off is to go on
        return self._has_room(ours=ours)

    def _has_room(self, *, ours: bool) -> bool:
        number = sum(one.is_ours is ours for one in self._connections.values())
        return number < self.config.max_connections // 2

    def _idle(self) -> Iterator[Connection]:
        """The connections that wait for nothing, the least recently used first."""
        for connection in sorted(self._connections.values(), key=lambda one: one.last_used):
            peer = self._peers.get(connection.pid)
            waits = peer is not None and peer.connection is connection and (peer.queue or peer.gathered)
            if not (connection.ended or waits or connection.is_in_frame or connection.has_unread()):
                yield connection

    def _end(self, connection: Connection) -> None:
        """End a connection: nothing is written to it any more, by either side.  What can be read is still read."""
        self._detach(connection)
        if not connection.ended:
            connection.end()
            if not connection.has_unread():
                self._close(connection)

    def _detach(self, connection: Connection) -> None:
        """Write no more on this connection; a frame that is not whole in it goes on another from its first byte."""
        peer = self._peers.get(connection.pid)
        if peer is not None and peer.connection is connection:
            peer.connection = None
            peer.sent_bytes = 0
            if peer.queue:
                self._blocked[peer.pid] = peer
            elif not peer.gathered:
                del self._peers[peer.pid]

    def _close(self, connection: Connection) -> None:
        self._detach(connection)
        if self._connections.pop(connection.fd, None) is not None:
            self._epoll.unregister(connection.fd)
            connection.close()
            if self._reserve is None:
                with contextlib.suppress(OSError):
                    self._reserve = _new_socket()

    def _is_open(self, connection: Connection) -> bool:
        return self._connections.get(connection.fd) is connection

    # Receiving

    def wait(self, timeout: float | None, watched: int = -1) -> bool:
        if watched >= 0:
            return super().wait(timeout, watched)
        found = self._looks(self._look)
        self._ready = found or self._epoll.poll(timeout, _EVENTS_A_ROUND)  # receive() goes on with them
        return False

    def receive(self, deliver: Deliver) -> None:
        self._rounds += 1
        try:
            for connection in tuple(self._undelivered):
                self._deliver(connection, deliver)
            events, self._ready = self._ready, []
            if not self._closed and self._receive(events or self._epoll.poll(0, _EVENTS_A_ROUND), deliver):
                self._receive(self._epoll.poll(0, _EVENTS_A_ROUND), deliver)  # what was accepted has brought something
        finally:
            self._rounds -= 1
            while self._gathering:
                self._write_gathered(self._gathering.pop())
            if self._blocked:
                self._reconnect_blocked()
            if self._undelivered and not self._rounds:
                self._timer.start(0)  # an interrupt has come out of a handler: the messages behind it are here already

    def _receive(self, events: Sequence[tuple[int, int]], deliver: Deliver) -> bool:
        """Look after the connections that polled readable; whether new ones were accepted."""
        accepted = False
        for fd, _ in events:
            connection = self._connections.get(fd)
            if connection is not None:
                if connection.is_ours and connection.hello is None:
                    accepted |= self._accept(_BACKLOG + 1, within_bounds=False)
                if self._is_open(connection):
                    self._read(connection, deliver)
            elif fd == self._listener.fileno():
                accepted |= self._accept(_ACCEPTS_A_ROUND, within_bounds=True)
            elif fd == self._timer.fileno():
                self._timer.acknowledge()
                self._epoll.modify(self._listener, select.EPOLLIN)
            if self._closed:
                return False
        return accepted

    def _reconnect_blocked(self) -> None:
        for peer in tuple(self._blocked.values()):
            if peer.connection is None:
                self._flush(peer)

    def _accept(self, limit: int, *, within_bounds: bool) -> bool:
        """Accept what waits in the backlog, at most `limit` connections; whether there are new ones."""
        accepted = False
        for _ in range(limit):
            if within_bounds and not self._make_room(ours=False):
                self._pause_accepting()
                break
            try:
                connected, _ = self._listener.accept()
            except BlockingIOError:
                break
            except OSError:  # no descriptors left
                if self._reserve is None:
                    self._pause_accepting()
                    break
                self._reserve.close()
                self._reserve = None
                continue
            pid, uid, _ = Credentials.of_peer(connected)
            if uid not in self.presence.trusted_uids:
                connected.close()
                detail = f"uid {uid} (pid {pid}) is neither root, this user nor in msgd:trusted users"
                self.drops("of a user not to be heard", detail)
                continue
            connected.setblocking(False)
            self._end_accepted(pid)
            self._add(connected, pid, is_ours=False)
            accepted = True
        return accepted

    def _pause_accepting(self) -> None:
        """Leave the others in the backlog until the timer has run off."""
        self._epoll.modify(self._listener, 0)
        self._timer.start(_RETRY)

    def _end_accepted(self, pid: int) -> None:
        """A process has opened one more connection: end its last one, and the oldest of too many without a hello."""
        accepted = [one for one in self._connections.values() if not one.is_ours and not one.ended]
        for one in accepted:
            if one.pid == pid:
                self._end(one)
        half_open = [one for one in accepted if one.hello is None and not one.ended]
        if len(half_open) >= self.config.half_open_connections:
            oldest = half_open[0]
            self._end(oldest)
            if not self._is_open(oldest):
                self.drops("malformed or forged", f"pid {oldest.pid} has connected and not said a word")

    def _read(self, connection: Connection, deliver: Deliver) -> bool:
        """Receive once and deliver what that completes; False if there was nothing to receive."""
        try:
            if connection.hello is None:
                self._learn_identity(connection, deliver)
                if connection.hello is None or not self._is_open(connection):
                    return True
            if connection.memory_wanted:
                self._limit_memory(connection.memory_wanted, deliver)
                if not self._is_open(connection):
                    return True
            connection.receive()
        except BlockingIOError:
            return False
        except EOFError:
            self._reach_end(connection)
        except MalformedMessage as error:
            self._refuse(connection, str(error))
        else:
            self._deliver(connection, deliver)
        return True

    def _limit_memory(self, wanted: int, deliver: Deliver) -> None:
        """End connections in the middle of long messages, those first that have waited longest, to receive one more."""
        holding = [one for one in self._connections.values() if one.memory_held]
        excess = sum(one.memory_held for one in holding) + wanted - self.config.receive_buffer_bytes
        for one in sorted(holding, key=lambda one: one.last_used):
            if excess <= 0 or self._closed:
                break
            excess -= one.memory_held
            self._end(one)
            self._read_to_end(one, deliver)

    def _learn_identity(self, connection: Connection, deliver: Deliver) -> None:
        """Set the connection's hello if it has come, after delivering what older streams of the process still hold."""
        hello = connection.receive_hello()
        if hello is not None:
            for older in self._older_streams(connection, hello):
                self._read_to_end(older, deliver)
            if connection.hello is None and not self._closed:
                connection.hello = hello
                if not connection.is_ours and not connection.ended:
                    self._adopt(connection, hello)

    def _older_streams(self, connection: Connection, hello: Hello) -> list[Connection]:
        """The connections with older streams of the process that has said `hello`, the oldest first."""
        older = []
        for other in self._connections.values():
            if other.pid == connection.pid and other is not connection:
                known = other.hello or other.peek_hello()
                if known is not None and known.unique_id == hello.unique_id and known.number < hello.number:
                    older.append((known.number, other))
        return [other for _, other in sorted(older, key=lambda pair: pair[0])]

    def _read_to_end(self, connection: Connection, deliver: Deliver) -> None:
        """Deliver everything in a stream that its process or we have ended; its connection is closed then."""
        while not self._closed and self._is_open(connection):
            if not self._read(connection, deliver):
                self._refuse(connection, "it has begun a stream before the end of the one before")

    def _adopt(self, connection: Connection, hello: Hello) -> None:
        """Write to the process on the connection it has opened, unless both have opened one and ours is to stay."""
        peer = self._peers.get(connection.pid)
        if peer is not None and peer.unique_id != hello.unique_id:
            if not self._is_alive(connection):
                return  # what a dead process had still to say
            self._forget(peer)
            peer = None
        if peer is not None and peer.connection is not None:
            if peer.connection.is_ours and self.presence.pid <= peer.pid:
                return
            self._end(peer.connection)
        self._use(peer or self._new_peer(connection.pid, hello.unique_id), connection)

    def _deliver(self, connection: Connection, deliver: Deliver) -> None:
        """Deliver what was received last."""
        self._undelivered[connection] = None
        try:
            for message in connection.messages:
                if message.fds:
                    self._deliver_with_fds(message, deliver)
                else:
                    deliver(message)
                if self._closed:
                    return
        except MalformedMessage as error:
            self._refuse(connection, str(error))
        self._undelivered.pop(connection, None)

    def _deliver_with_fds(self, message: Message, deliver: Deliver) -> None:
        try:
            if LOST_FD in message.fds:
                self.drops("no descriptors left", f"{type_name(message.type)} from {message.src}")
            else:
                deliver(message)
        finally:
            for fd in message.fds:
                if fd != LOST_FD:
                    os.close(fd)

    def _refuse(self, connection: Connection, problem: str) -> None:
        """Close a connection that cannot be understood, unread."""
        self.drops("malformed or forged", f"on a connection of pid {connection.pid}: {problem}")
        self._close(connection)

    def _reach_end(self, connection: Connection) -> None:
        """The other side has ended the connection, or we have: it is read to its end."""
        if connection.is_in_frame and not self._is_alive(connection):  # else it comes again on another
            self.drops("the rest never came", f"pid {connection.pid} has ended in the middle of a message")
        self._close(connection)

    def _is_alive(self, connection: Connection) -> bool:
        """Whether the process that has begun the stream is still the one with its pid."""
        if connection.hello is None:
            return False
        with contextlib.suppress(TransportError):
            return self.presence.is_alive(ServerID(connection.pid, unique_id=connection.hello.unique_id))
        return False

    # The end

    def statistics(self) -> BackendStatistics:
        gathering = {peer.pid: peer for peer in self._gathering if peer.gathered}
        waiting = (gathering | self._blocked).values()
        return BackendStatistics(
            sum(len(peer.queue) + len(peer.gathered) for peer in waiting),
            sum(peer.queue.bytes + peer.gathered_bytes for peer in waiting),
            len(waiting),
        )

    def pending(self, pid: int) -> int:
        peer = self._peers.get(pid)
        return len(peer.queue) + len(peer.gathered) if peer is not None else 0

    def give_up(self) -> int:
        number = 0
        for peer in tuple(self._blocked.values()):
            if peer.connection is not None:
                self._end(peer.connection)
            number += peer.queue.give_up(self.drops, "not taken before close")
            self._unblock(peer)
        return number

    def close(self) -> None:
        if not self._closed:
            remove_socket(self.presence.socket_dir_fd, str(self.presence.pid))
            for connection in self._connections.values():
                connection.end()
            self.abandon()

    def abandon(self) -> None:
        self._closed = True
        self._epoll.close()
        self._listener.close()
        self._timer.close()
        if self._reserve is not None:
            self._reserve.close()
        for connection in self._connections.values():
            connection.close()
        for peer in self._peers.values():
            peer.queue.discard()
        for table in (self._connections, self._peers, self._blocked, self._gathering, self._undelivered):
            table.clear()


def _rest(outgoing: Outgoing, sent: int) -> tuple[bytes | memoryview, ...]:
    """What is to be written of a queued message of which so many bytes have been."""
    missing = len(outgoing.start) - sent
    if missing > 0:
        return memoryview(outgoing.start)[sent:], outgoing.message
    return (memoryview(outgoing.message)[-missing:],)


def _new_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


def _no_such_process(pid: int) -> NoSuchProcess:
    return NoSuchProcess(f"no process {pid} is listening")
