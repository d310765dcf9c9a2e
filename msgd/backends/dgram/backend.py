"""AF_UNIX datagrams, byte for byte Samba's (4.2 and later).

Sending.  Every destination has a connected socket of its own, kept in a cache: it saves the path look-up, and the
kernel wakes a connected socket's poller when the receiver has drained its queue (10 datagrams by default,
net.unix.max_dgram_qlen).  What does not fit goes to an OutQueue; a destination with a non-empty queue is "blocked",
its socket is watched for writability in the epoll set that fileno() gives out, and nothing overtakes its queue: a
message is sent directly only when the queue is empty, a fragment only after the one before it.

Waiting for room.  Of those who poll for room, the kernel wakes everybody for each datagram that is read; with eight
senders that leaves the receiver a fifth of its rate.  Of those who wait in send(), it wakes one.  So who waits for one
receiver alone sends the next message in a call that blocks, for a bounded time, and polls only where it must.

A receiver that re-opened its socket refuses a cached connection once: the destination is then connected anew and the
message at hand is repeated from its first fragment under a new cookie, so that the receiver never joins two halves.
If another process has the pid by then (the lock file's unique id has changed), what was queued for the old one is
given up: a message never reaches a process it was not meant for.

Receiving.  The kernel tells the sender of each datagram (SO_PASSCRED): its pid must be the pid in the header, its uid
root, ours or a trusted one.  Everything else about a datagram is checked before use, and what is wrong is counted.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import secrets
import select
import socket
import time
from collections.abc import Collection
from functools import partial

from msgd.backends.base import Backend, BackendStatistics, Deliver
from msgd.backends.out_queue import OutQueue
from msgd.backends.sockets import bind_socket, cached_destinations, check_unique_id
from msgd.backends.spin import Spinner
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import MalformedMessage, NoSuchProcess, TransportError
from msgd.linux import CREDENTIALS_SIZE, Credentials, set_send_timeout
from msgd.presence import Presence, Process
from msgd.presence.socket_path import remove_socket
from msgd.results import SendStatus
from msgd.wire.dgram import COOKIE_MAX, DATAGRAM_MAX, FRAGMENT_MAX, WHOLE_COOKIE, WHOLE_MAX, Reassembler, fragment
from msgd.wire.header import HEADER_SIZE, MAX_FDS, MessageDecoder, pack_header
from msgd.wire.message_types import type_name
from msgd.wire.server_id import ANY_PROCESS, ServerID

_libc = ctypes.CDLL(None, use_errno=True)
_libc.send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
_libc.send.restype = ctypes.c_ssize_t
_ANCILLARY_SIZE = socket.CMSG_SPACE(CREDENTIALS_SIZE) + socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_CREDENTIALS = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)

_DATAGRAMS_A_ROUND = 256
"""receive() returns after this many, so that a flood does not keep dispatch from its other work."""

_KNOWN_SENDERS = 1024
"""Credentials remembered as heard; the table is emptied when it is full."""

_LONGEST_WAIT = 1.0
"""Seconds in one call that waits for room: a sender that is woken and killed before it sends passes no wake-up on."""

_REFUSALS_MAX = 3
"""A process that re-opened its socket refuses once; one that refuses its new socket as well is not coming back."""

_WHOLE_MIN = len(WHOLE_COOKIE) + HEADER_SIZE

_NOBODY_THERE = frozenset((errno.ENOENT, errno.ECONNREFUSED, errno.EPROTOTYPE))


class _Destination:
    """One receiving process: the connected socket, who it is, and what waits for it."""

    __slots__ = ("cookie", "pid", "queue", "sent_bytes", "socket", "unique_id")

    def __init__(self, process: Process, connected: socket.socket, queue: OutQueue) -> None:
        self.pid = process.pid
        self.unique_id = process.unique_id
        self.socket = connected
        self.queue = queue
        self.cookie = secrets.randbits(64)
        """Where no earlier socket of this number, nor one of an earlier process, has been."""
        self.sent_bytes = 0
        """Bytes of the message under `cookie` that have left in fragments."""

    def next_cookie(self) -> None:
        """Begin a message: its first fragment leaves next."""
        self.cookie = self.cookie % COOKIE_MAX + 1
        self.sent_bytes = 0


class DgramBackend(Backend):
    """The datagram endpoint of this process."""

    def __init__(self, config: Config, presence: Presence, drops: Drops) -> None:
        super().__init__(config, presence, drops)
        self._decoder = MessageDecoder()
        self._reassembler = Reassembler(
            config.max_message_size + HEADER_SIZE,
            config.reassembly_bytes,
            config.reassembly_messages,
            config.reassembly_timeout,
        )
        self._destinations: dict[int, _Destination] = {}
        self._blocked: dict[int, _Destination] = {}
        self._senders: dict[bytes, int] = {}
        self._closed = False
        self._cached_destinations = cached_destinations(1)
        self._epoll = select.epoll()
        self._spin = Spinner()
        self._poll = partial(self._epoll.poll, 0)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._bind()
            self._epoll.register(self._socket, select.EPOLLIN)
        except OSError as error:
            self.abandon()
            raise TransportError(f"{presence.socket_directory}/{presence.pid}: {error.strerror}") from error

    def _bind(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        bind_socket(self._socket, self.presence)

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
        if destination is None or (dst.unique_id != destination.unique_id and dst.unique_id not in ANY_PROCESS):
            destination = self._find(dst)
        message = pack_header(dst, src, message_type) + data
        queue = destination.queue
        if queue:
            self._flush(destination)
            if self._destinations.get(dst.pid) is not destination:
                destination = self._find(dst)
                queue = destination.queue
        if not queue:
            try:
                if len(message) <= WHOLE_MAX and not fds:
                    destination.socket.send(WHOLE_COOKIE + message, socket.MSG_DONTWAIT)
                else:
                    destination.next_cookie()
                    self._transmit(destination, message, fds)
                return SendStatus.SENT
            except BlockingIOError:
                pass
            except ConnectionError:
                if not self._reopen(destination):
                    if dst.unique_id not in ANY_PROCESS:
                        raise _no_such_process(dst) from None
                    destination = self._find(dst)  # the pid has a new endpoint, or none
                    queue = destination.queue
            except OSError as error:
                raise TransportError(f"sending to {dst}: {error.strerror}") from error
        elif not duplicates_allowed and not fds and queue.holds(message):
            return SendStatus.MERGED
        try:
            queue.append(dst, message_type, message, fds)
        except OSError as error:
            raise TransportError(f"queueing a message to {dst}: {error.strerror}") from error
        self._block(destination)
        return SendStatus.QUEUED

    def _transmit(self, destination: _Destination, message: bytes, fds: Collection[int]) -> None:
        """Send `message` from destination.sent_bytes on; BlockingIOError when the receiver takes no more now."""
        rights = [(*_RIGHTS, array.array("i", fds))] if fds else []
        if len(message) <= WHOLE_MAX:
            destination.socket.sendmsg([WHOLE_COOKIE, message], rights, socket.MSG_DONTWAIT)
            return
        number, last = destination.socket.fileno(), len(message) - FRAGMENT_MAX
        for datagram in fragment(message, destination.cookie, self.presence.pid, number, destination.sent_bytes):
            with_it = rights if destination.sent_bytes >= last else []
            destination.socket.sendmsg([datagram], with_it, socket.MSG_DONTWAIT)
            destination.sent_bytes += FRAGMENT_MAX

    def flush(self, timeout: float = 0.0) -> None:
        blocked = list(self._blocked.values())
        if timeout and blocked and (len(blocked) > 1 or not _is_whole(blocked[0].queue)):
            poll = select.poll()
            for destination in blocked:
                poll.register(destination.socket, select.POLLOUT)
            poll.poll(timeout * 1000)
            timeout = 0.0
        for destination in blocked:
            self._flush(destination, timeout)

    def _flush(self, destination: _Destination, timeout: float = 0.0) -> None:
        """Send what the destination's queue holds, as far as it takes it.

        With a `timeout`, wait at most that many seconds until it takes the first, a whole message.
        """
        queue, refusals = destination.queue, 0
        while queue:
            head = queue.head
            try:
                if timeout:
                    waiting, timeout = min(timeout, _LONGEST_WAIT), 0.0
                    _send_waiting(destination.socket, WHOLE_COOKIE + head.message, waiting)
                else:
                    self._transmit(destination, head.message, head.fds)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                refusals += 1
                if refusals > _REFUSALS_MAX:
                    self._forget(destination)
                    return
                if not self._reopen(destination):
                    return
                continue
            except OSError as error:
                detail = f"to {head.dst} of type {type_name(head.type)}: {error.strerror}"
                self.drops("sending failed", detail, about_it=head.about_it)
            queue.pop()
            destination.next_cookie()
        self._unblock(destination)

    def _find(self, dst: ServerID) -> _Destination:
        """The connected destination for `dst`, by what its lock file says now; NoSuchProcess if it is not here."""
        process = self.presence.process(dst.pid)
        destination = self._destinations.get(dst.pid)
        if destination is not None and (process is None or process.unique_id != destination.unique_id):
            self._forget(destination)
            destination = None
        if process is None:
            raise _no_such_process(dst)
        check_unique_id(dst, process.unique_id)
        if destination is None:
            connected = self._connect(process.pid)
            if connected is None:
                raise _no_such_process(dst)
            self._make_room()
            queue = OutQueue(self.config.send_queue_messages, self.config.send_queue_bytes)
            destination = self._destinations[dst.pid] = _Destination(process, connected, queue)
        return destination

    def _connect(self, pid: int) -> socket.socket | None:
        """A socket connected to the endpoint of `pid`, None if nobody listens there."""
        connected = None
        try:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            connected.setblocking(True)  # it blocks in _send_waiting(), and nowhere by the program's default time-out
            connected.connect(f"/proc/self/fd/{self.presence.socket_dir_fd}/{pid}")
            return connected
        except OSError as error:
            if connected is not None:
                connected.close()
            if error.errno in _NOBODY_THERE:
                return None
            raise TransportError(f"connecting to pid {pid}: {error.strerror}") from error

    def _reopen(self, destination: _Destination) -> bool:
        """Connect anew to a process that refused; if it is not the same or nobody is there, forget it: False."""
        process = self.presence.process(destination.pid)
        same = process is not None and process.unique_id == destination.unique_id
        connected = self._connect(destination.pid) if same else None
        if connected is None:
            self._forget(destination)
            return False
        self._unblock(destination)
        destination.socket.close()
        destination.socket = connected
        destination.next_cookie()
        if destination.queue:
            self._block(destination)
        return True

    def _forget(self, destination: _Destination) -> None:
        """Close the connection; what still waits is given up."""
        del self._destinations[destination.pid]
        self._unblock(destination)
        destination.socket.close()
        destination.queue.give_up(self.drops, "the destination is gone")

    def _make_room(self) -> None:
        """Close the longest kept idle connection when the cache is full; blocked ones are kept beyond it."""
        if len(self._destinations) >= self._cached_destinations:
            idle = next((one for one in self._destinations.values() if not one.queue), None)
            if idle is not None:
                self._forget(idle)

    def _block(self, destination: _Destination) -> None:
        if destination.pid not in self._blocked:
            self._blocked[destination.pid] = destination
            self._epoll.register(destination.socket, select.EPOLLOUT)

    def _unblock(self, destination: _Destination) -> None:
        if self._blocked.pop(destination.pid, None) is not None:
            self._epoll.unregister(destination.socket)

    # Receiving

    def wait(self, timeout: float | None, watched: int = -1) -> bool:
        if watched >= 0:
            return super().wait(timeout, watched)
        if not self._spin(self._poll):
            self._epoll.poll(timeout)  # one call and no set-up: every message of a ping-pong waits here
        return False

    def receive(self, deliver: Deliver) -> None:
        recvmsg, senders, decode = self._socket.recvmsg, self._senders, self._decoder.decode
        for _ in range(_DATAGRAMS_A_ROUND):
            try:
                datagram, ancillary, flags, _ = recvmsg(DATAGRAM_MAX, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            # The short way for what nearly every datagram is: a whole message, without descriptors, of a known sender.
            if len(ancillary) == 1 and flags == socket.MSG_CMSG_CLOEXEC and len(datagram) >= _WHOLE_MIN:
                pid = senders.get(ancillary[0][2])
                if pid is not None and datagram.startswith(WHOLE_COOKIE):
                    message = decode(datagram, len(WHOLE_COOKIE))
                    if message.src.pid == pid:
                        deliver(message)
                        if self._closed:
                            return
                        continue
            self._receive_with_care(datagram, ancillary, flags, deliver)
            if self._closed:
                return
        if self._reassembler:
            self._reassembler.expire(time.monotonic())
            self._count_abandoned()

    def _receive_with_care(
        self, datagram: bytes, ancillary: list[tuple[int, int, bytes]], flags: int, deliver: Deliver
    ) -> None:
        """Check everything about one datagram, and deliver the message it is or completes."""
        fds = array.array("i")
        credentials = b""
        for level, kind, content in ancillary:
            if (level, kind) == _RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
            elif (level, kind) == _CREDENTIALS:
                credentials = content
        try:
            pid = self._check_credentials(credentials)
            if flags & socket.MSG_TRUNC:
                raise MalformedMessage(f"it is longer than {DATAGRAM_MAX} bytes")
            if flags & socket.MSG_CTRUNC or len(fds) > MAX_FDS:
                raise MalformedMessage(f"it has more than {MAX_FDS} descriptors, or this process has none left")
            if datagram.startswith(WHOLE_COOKIE):
                whole: bytes | None = datagram[len(WHOLE_COOKIE) :]
            else:
                whole = self._reassembler.add(datagram, pid, time.monotonic())
            if whole is None:
                if fds:
                    raise MalformedMessage("descriptors ride on a fragment that is not the last")
                return
            message = self._decoder.decode(whole, 0, tuple(fds))
            if message.src.pid != pid:
                raise MalformedMessage(f"its source says pid {message.src.pid}")
            deliver(message)
        except MalformedMessage as error:
            self.drops("malformed or forged", f"a datagram of {_describe(credentials)}: {error}")
        except _NotHeard as error:
            self.drops("of a user not to be heard", str(error))
        finally:
            for fd in fds:
                os.close(fd)
            self._count_abandoned()

    def _check_credentials(self, credentials: bytes) -> int:
        """The kernel's word on the sender's pid; _NotHeard if its user is not to be heard."""
        if len(credentials) != CREDENTIALS_SIZE:
            raise MalformedMessage("it has no credentials")
        pid, uid, _ = Credentials.unpack(credentials)
        if uid not in self.presence.trusted_uids:
            raise _NotHeard(f"uid {uid} (pid {pid}) is neither root, this user nor in msgd:trusted users")
        if len(self._senders) >= _KNOWN_SENDERS:
            self._senders.clear()
        self._senders[credentials] = pid
        return pid

    def _count_abandoned(self) -> None:
        abandoned = self._reassembler.take_abandoned()
        if abandoned:
            self.drops("the rest never came", "fragments of a large message", abandoned)

    # The end

    def statistics(self) -> BackendStatistics:
        queues = [destination.queue for destination in self._blocked.values()]
        return BackendStatistics(sum(map(len, queues)), sum(queue.bytes for queue in queues), len(queues))

    def pending(self, pid: int) -> int:
        destination = self._blocked.get(pid)
        return 0 if destination is None else len(destination.queue)

    def give_up(self) -> int:
        return sum(
            destination.queue.give_up(self.drops, "not taken before close") for destination in self._blocked.values()
        )

    def close(self) -> None:
        if not self._closed:
            remove_socket(self.presence.socket_dir_fd, str(self.presence.pid))
            self.abandon()

    def abandon(self) -> None:
        self._closed = True
        self._epoll.close()
        self._socket.close()
        for destination in self._destinations.values():
            destination.socket.close()
            destination.queue.discard()
        self._destinations.clear()
        self._blocked.clear()


class _NotHeard(Exception):
    """The sender's user is not to be heard."""


def _is_whole(queue: OutQueue) -> bool:
    """Whether the next message is one datagram of nothing but bytes; an interrupt may have left the queue empty."""
    return bool(queue) and queue.head.size <= WHOLE_MAX and not queue.head.fds


def _send_waiting(connected: socket.socket, datagram: bytes, timeout: float) -> None:
    """Send in a call that waits for room.  Raises OSError: BlockingIOError if there is none in time.

    Not socket.send(): after a signal that goes on, for all of the time-out again.  This raises InterruptedError.
    """
    set_send_timeout(connected, timeout)
    if _libc.send(connected.fileno(), datagram, len(datagram), socket.MSG_NOSIGNAL) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _no_such_process(dst: ServerID) -> NoSuchProcess:
    return NoSuchProcess(f"no process {dst} is listening")


def _describe(credentials: bytes) -> str:
    if len(credentials) != CREDENTIALS_SIZE:
        return "an unknown process"
    pid, uid, _ = Credentials.unpack(credentials)
    return f"pid {pid}, uid {uid}"
