# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The dgram transport: AF_UNIX datagrams, byte for byte those of Samba 4.2 and later.

DgramBackend is what the general code sees.  It keeps the table of destinations (destination.py), hands received
datagrams to the Receiver (receiving.py), and gives out one epoll set as its descriptor.

Rule 1. A message is sent directly only while the destination's queue is empty; otherwise it joins the queue.  A
        destination with a queue is "blocked": the epoll set watches its socket until there is room for more.
Rule 2. A message never reaches a process that it was not meant for.  If the lock file of the pid holds another unique
        id than when the socket was connected, the destination is forgotten, and its queue is dropped and counted.
Rule 3. A refused connection is not the end of a process: a receiver that re-opened its socket refuses the old
        connection once.  The destination reconnects and repeats the message in flight.
Rule 4. A destination with a queue is never evicted from the table.

Why a sender blocks in send() rather than poll for room: for each datagram that is read, the kernel wakes every process
that polls for room, but only one of those that block in send().  With eight senders that poll, the receiver was left a
fifth of its rate.  So a sender with one blocked destination waits in a blocking send() of the next message, for a
bounded time.  It polls only where it must: for several destinations, or where the next message is not a single
datagram.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
from collections.abc import Collection, Sequence
from functools import partial

from msgd.backends.base import Backend, BackendStatistics, Deliver, PlainSender
from msgd.backends.dgram.destination import BATCH_BYTES, Destination, connect
from msgd.backends.dgram.receiving import Receiver
from msgd.backends.out_queue import OutQueue
from msgd.backends.sockets import cached_destinations, check_addressed
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import NoSuchProcess, TransportError, system_error
from msgd.linux import EventFd, new_epoll, new_poll
from msgd.native import native
from msgd.presence import Presence
from msgd.presence.socket_path import remove_socket
from msgd.results import SendStatus
from msgd.wire.dgram import LONG_DATAGRAM_MAX, WHOLE_COOKIE, WHOLE_MAX, pack_batch
from msgd.wire.header import HEADER_SIZE, pack_header
from msgd.wire.server_id import ANY_UNIQUE_ID, ServerID

_REFUSED = frozenset((errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN))
"""What a send fails with if the receiver has closed its socket: ENOTCONN if the plain sender has been told before."""

_WHOLE_DATA_MAX = WHOLE_MAX - HEADER_SIZE
"""The longest data of a message that is one datagram."""

_REFUSALS_MAX = 3
"""Refusals in one flush after which a process is given up: it refuses its new socket as well."""


class DgramBackend(Backend):
    """The datagram endpoint of this process."""

    def __init__(self, config: Config, presence: Presence, drops: Drops) -> None:
        super().__init__(config, presence, drops)
        self._destinations: dict[int, Destination] = {}
        self._blocked: dict[int, Destination] = {}
        self.unsent = self._blocked
        self._cached_destinations = cached_destinations(1)
        presence.longest_datagram = LONG_DATAGRAM_MAX
        with contextlib.ExitStack() as opened:
            self._epoll = opened.enter_context(contextlib.closing(new_epoll()))
            self._wake_up = opened.enter_context(contextlib.closing(EventFd()))
            self._receiver = opened.enter_context(contextlib.closing(Receiver(config, presence, drops)))
            opened.pop_all()
        self._poll = partial(self._epoll.poll, 0)
        try:
            self._receiver.bind()
            self._epoll.register(self._receiver.socket, select.EPOLLIN)
            self._epoll.register(self._wake_up, select.EPOLLIN)
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
        destination = self._destinations.get(dst.pid)
        if destination is None or (dst.unique_id != destination.unique_id and dst.unique_id not in ANY_UNIQUE_ID):
            destination = self._find(dst)
        header, message = pack_header(dst, src, message_type), data
        if len(data) <= _WHOLE_DATA_MAX:
            header, message = b"", header + data
        queue = destination.queue
        if queue.messages:
            self._flush(destination)
            if self._destinations.get(dst.pid) is not destination:
                destination = self._find(dst)
                queue = destination.queue
        if not queue.messages:
            try:
                if not header and not fds:
                    destination.socket.send(WHOLE_COOKIE + message, socket.MSG_DONTWAIT)
                else:
                    destination.begin_message()
                    destination.transmit(header, message, fds)
                return SendStatus.SENT
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise TransportError(f"sending to {dst}: {error.strerror}") from error
                if not self._reconnect(destination):
                    if dst.unique_id not in ANY_UNIQUE_ID:
                        raise _no_such_process(dst) from None
                    destination = self._find(dst)  # NoSuchProcess unless the pid has a new endpoint
                    queue = destination.queue
                # The message joins the queue.  The new socket gets it with the next flush, from its first fragment.
        elif not duplicates_allowed and not fds and queue.holds(message, header):
            return SendStatus.MERGED
        try:
            queue.append(dst, message_type, message, fds, header)
        except OSError as error:
            raise TransportError(f"queueing a message to {dst}: {error.strerror}") from error
        self._block_or_take_back(destination)
        return SendStatus.QUEUED

    def send_batch(self, dst: ServerID, src: ServerID, messages: Sequence[tuple[int, bytes]]) -> bool:
        destination = self._destinations.get(dst.pid)
        if (
            destination is None
            or dst.unique_id != destination.unique_id
            or not destination.reads_batches
            or destination.queue.messages
            or max(len(data) for _, data in messages) > _WHOLE_DATA_MAX
        ):
            return False
        batch = pack_batch(pack_header(dst, src, message_type) + data for message_type, data in messages)
        try:
            if len(batch) <= BATCH_BYTES:
                destination.socket.sendmsg((batch,), (), socket.MSG_DONTWAIT)
                return True
        except OSError:
            pass  # send() finds out why, for each of them
        return False

    def plain_sender(self, lock: threading.RLock) -> PlainSender | None:
        if native is None:
            return None
        sender: PlainSender = native.datagram_sender(
            lock,
            ServerID,
            self._destinations,
            SendStatus.SENT,
            Destination,
            OutQueue,
            self.config.max_message_size,
        )
        return sender

    def flush(self, timeout: float = 0.0) -> None:
        blocked = list(self._blocked.values())
        if timeout and blocked and (len(blocked) > 1 or not blocked[0].has_datagram_at_head):
            self.poll_for_room().poll(timeout * 1000)
            timeout = 0.0
        for destination in blocked:
            self._flush(destination, timeout)

    def poll_for_room(self) -> select.poll:
        poll = new_poll()
        poll.register(self._wake_up, select.POLLIN)
        for destination in self._blocked.values():
            poll.register(destination.socket, select.POLLOUT)
        return poll

    def _flush(self, destination: Destination, timeout: float = 0.0) -> None:
        """Send the destination's queue until its socket is full; the first send may block for `timeout`."""
        refusals = 0
        while True:
            try:
                destination.send_queued(self.drops, timeout)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                refusals += 1
                timeout = 0.0
                if refusals > _REFUSALS_MAX:
                    self._forget(destination)
                    return
                if not self._reconnect(destination):
                    return
            else:
                self._unblock(destination)
                return

    # The table of destinations

    def _find(self, dst: ServerID) -> Destination:
        """The destination that the lock file of `dst.pid` names now, connected.

        Raises NoSuchProcess if there is none.
        """
        process = self.presence.process(dst.pid)
        destination = self._destinations.get(dst.pid)
        if destination is not None and (process is None or process.unique_id != destination.unique_id):
            self._forget(destination)
            destination = None
        if process is None:
            raise _no_such_process(dst)
        check_addressed(dst, process, self.config.messaging_type)
        if destination is None:
            connected = connect(self.presence, process.pid)
            if connected is None:
                raise _no_such_process(dst)
            self._evict_if_full()
            queue = OutQueue(self.config.send_queue_messages, self.config.send_queue_bytes)
            destination = self._destinations[dst.pid] = Destination(process, self.presence.pid, connected, queue)
        return destination

    def _reconnect(self, destination: Destination) -> bool:
        """Connect again to a process that refused.

        Returns False if nobody listens there now, or another process does; the destination is then forgotten.
        """
        process = self.presence.process(destination.pid)
        is_same = process is not None and process.unique_id == destination.unique_id
        connected = connect(self.presence, destination.pid) if is_same else None
        if connected is None:
            self._forget(destination)
            return False
        self._unblock(destination)
        destination.replace_socket(connected)
        if destination.queue:
            self._block(destination)
        return True

    def _forget(self, destination: Destination) -> None:
        """Close the connection and drop what is queued, counting it."""
        del self._destinations[destination.pid]
        self._unblock(destination)
        destination.socket.close()
        destination.queue.give_up(self.drops, "the destination is gone")

    def _evict_if_full(self) -> None:
        """When the table is full, close the oldest connection without a queue; if all have one, it grows."""
        if len(self._destinations) >= self._cached_destinations:
            idle = next((one for one in self._destinations.values() if not one.queue), None)
            if idle is not None:
                self._forget(idle)

    def _block(self, destination: Destination) -> None:
        if destination.pid not in self._blocked:
            self._epoll.register(destination.socket, select.EPOLLOUT)
            self._blocked[destination.pid] = destination

    def _block_or_take_back(self, destination: Destination) -> None:
        """Watch for room for the message that has just been queued; if that is refused, it is not queued either."""
        try:
            self._block(destination)
        except OSError as error:
            destination.queue.discard()  # it is the only one, or the destination would be watched already
            destination.begin_message()
            raise system_error(f"queueing a message to pid {destination.pid}", error) from error

    def _unblock(self, destination: Destination) -> None:
        if self._blocked.pop(destination.pid, None) is not None:
            self._epoll.unregister(destination.socket)

    # Receiving

    def wait(self, timeout: float | None, watched: int = -1) -> bool:
        if watched >= 0:
            return super().wait(timeout, watched)
        if not self.spinner(self._poll):
            self._epoll.poll(timeout)  # one call and no set-up: each message of a ping-pong waits here
        return False

    def wake(self) -> None:
        self._wake_up.set()

    def watch_also(self, fd: int) -> None:
        self._epoll.register(fd, select.EPOLLIN)

    def take_wake(self) -> bool:
        was_set = self._wake_up.is_set
        if was_set:
            self._wake_up.clear()
        return was_set

    def receive(self, deliver: Deliver) -> None:
        if self._wake_up.is_set:
            self._wake_up.clear()
        self._receiver.receive(deliver)

    # Statistics

    def statistics(self) -> BackendStatistics:
        queues = [destination.queue for destination in self._blocked.values()]
        return BackendStatistics(sum(map(len, queues)), sum(queue.bytes for queue in queues), len(queues))

    def pending(self, pid: int) -> int:
        destination = self._blocked.get(pid)
        return 0 if destination is None else len(destination.queue)

    # The end

    def give_up(self) -> int:
        return sum(
            destination.queue.give_up(self.drops, "not taken before close") for destination in self._blocked.values()
        )

    def close(self) -> None:
        if not self._receiver.is_closed:
            remove_socket(self.presence.socket_dir_fd, str(self.presence.pid))
            self.abandon()

    def abandon(self) -> None:
        self._receiver.close()
        self._epoll.close()
        self._wake_up.close()
        for destination in self._destinations.values():
            destination.socket.close()
            destination.queue.discard()
        self._destinations.clear()
        self._blocked.clear()


def _no_such_process(dst: ServerID) -> NoSuchProcess:
    return NoSuchProcess(f"no process {dst} is listening")
