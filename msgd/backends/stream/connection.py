# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""One connected AF_UNIX stream socket: it reads messages from the other side's stream and writes bytes to ours.

The rest of the stream transport relies on these facts about the kernel, which only this file has to know:

1. The credentials of the other side (SO_PEERCRED) are those of the moment it connected, or began to listen.
2. shutdown() is atomic.  What was written before it stays readable.
3. A reset is reported only after everything that was sent has been read.
4. A write of no bytes tells whether the other side still reads.
5. Descriptors arrive with the first byte they were sent with, and one read never combines those of two writes.
"""

from __future__ import annotations

import array
import contextlib
import errno
import io
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import chain, compress
from operator import call, is_
from typing import Any

from msgd.backends.at_once import Step, head_of, if_empty, take_head
from msgd.errors import MalformedMessage, NoSuchProcess, TransportError
from msgd.linux import Credentials, unix_socket
from msgd.presence import Presence
from msgd.wire.header import MAX_FDS
from msgd.wire.stream import CLOSED, HELLO_SIZE, LOST_FD, FrameReader, Hello, Lost

_CHUNK = 1 << 16
"""Bytes asked for in one read of short frames."""

_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)

_CLOEXEC, _RIGHTS_LOST = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)

_Received = tuple[bytes | int, list[tuple[int, int, bytes]], int, Any]
"""A chunk of bytes, as recvmsg() returns it, or their number, as recvmsg_into() does; then ancillary data and flags."""

_NOT_LISTENING = frozenset((errno.ENOENT, errno.ECONNREFUSED, errno.EPROTOTYPE))
"""The errors of connect() that say that no process listens there with a stream socket."""


def new_socket() -> socket.socket:
    """A non-blocking stream socket.  Raises OSError."""
    return unix_socket(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


def no_such_process(pid: int) -> NoSuchProcess:
    """The error for a process that does not listen."""
    return NoSuchProcess(f"no process {pid} is listening")


def connect(presence: Presence, pid: int) -> socket.socket:
    """Connect to the endpoint of the process `pid`, and make sure that it is this process that listens there.

    Raises BlockingIOError if its backlog is full, NoSuchProcess, and TransportError if this process lacks descriptors
    or memory.
    """
    connected = None
    try:
        connected = new_socket()
        connected.connect(f"/proc/self/fd/{presence.socket_dir_fd}/{pid}")
        listener_pid, uid, _ = Credentials.of_peer(connected)
    except OSError as error:
        if connected is not None:
            connected.close()
        if error.errno == errno.EAGAIN:
            raise
        if error.errno in _NOT_LISTENING:
            raise no_such_process(pid) from None
        raise TransportError(f"connecting to pid {pid}: {error.strerror}") from error
    if listener_pid != pid or uid not in presence.trusted_uids:
        connected.close()
        raise NoSuchProcess(f"pid {listener_pid}, uid {uid}, listens at the socket of pid {pid}")
    return connected


class Connection:
    """A non-blocking connected socket to the process `pid`; `is_ours` if this process has opened it.

    `ended` is set once we have shut it down.  `hello` is what the other side's stream began with; the incoming side
    sets it when the messages of this stream may be delivered.  `last_used` is when it last took or brought bytes, on
    the monotonic clock.
    """

    __slots__ = (
        "_begun", "_compiled", "_hello_bytes", "_memory", "_next_hello", "_settled", "_socket", "_to_skip", "ended",
        "fd", "hello", "is_ours", "last_used", "pid", "reader", "received",
    )  # fmt: skip

    def __init__(
        self, connected: socket.socket, pid: int, reader: FrameReader, next_hello: Callable[[], Hello], *, is_ours: bool
    ) -> None:
        self._socket = connected
        self._next_hello = next_hello
        self._memory: io.BytesIO | None = None
        self._to_skip = 0
        """Bytes still to come of a long message for which there was no memory."""
        self._hello_bytes = b""
        self._begun = False
        self.reader = reader
        self.fd = connected.fileno()
        self._compiled = (reader.receiver(self.fd),) if reader.is_compiled else ()
        """The call that receives short frames, if it is compiled."""
        self.pid = pid
        self.is_ours = is_ours
        self.ended = False
        self.hello: Hello | None = None
        self.received: deque[_Received | float] = deque()
        """The chunk that has been received and is not settled; there is at most one.

        A float stands for what the compiled twin has left to be done, or (-1) for a long message that begins, for which
        memory is to be allocated.  It is a new object each time, so that it can be told from the one before.
        """
        self._settled = object()
        """Another object each time something has been settled."""
        self.last_used = time.monotonic()

    # Our stream

    def write(self, buffers: Sequence[bytes | memoryview], fds: Collection[int] = ()) -> int:
        """Write as much as the socket takes, and return how many bytes that is.

        Before the first bytes it writes a hello.  The descriptors ride on the first byte.  Raises BlockingIOError if
        the socket takes nothing now, ConnectionError if the connection has ended, OSError.
        """
        if not self._begun:
            self._socket.send(self._next_hello().pack(), socket.MSG_NOSIGNAL)
            self._begun = True
        if fds or len(buffers) > 1:
            rights = [(*_RIGHTS, array.array("i", fds))] if fds else ()
            written = self._socket.sendmsg(buffers, rights, socket.MSG_NOSIGNAL)
        else:
            written = self._socket.send(buffers[0], socket.MSG_NOSIGNAL)
        self.last_used = time.monotonic()
        return written

    # The other side's stream

    @property
    def is_in_frame(self) -> bool:
        """Whether a message has begun to arrive and is not complete."""
        return self.reader.is_in_frame

    @property
    def memory_wanted(self) -> int:
        """Bytes that the next receive() allocates for a long message, mostly 0."""
        head = head_of(self.received)
        return self.reader.long if isinstance(head, float) and head < 0 else 0

    @property
    def memory_held(self) -> int:
        """Bytes allocated for a long message that has begun to arrive."""
        return self.reader.long if self._memory is not None else 0

    def has_unread(self) -> bool:
        """Whether there is something to receive, or to deliver, besides the end."""
        return self.is_unsettled or bool(self._peek(1))

    def peek_hello(self) -> Hello | None:
        """The hello, without taking it, if all of it has arrived.

        None also if these bytes are no hello; receive_hello() reports that.
        """
        seen = self._hello_bytes
        if len(seen) < HELLO_SIZE:
            seen += self._peek(HELLO_SIZE - len(seen))
        if len(seen) < HELLO_SIZE:
            return None
        with contextlib.suppress(MalformedMessage):
            return Hello.unpack(seen)
        return None

    def receive_hello(self) -> Hello | None:
        """Receive the hello or more of it.  Returns None while it is not complete.

        Raises BlockingIOError if nothing is there, EOFError at the end of the stream, MalformedMessage.
        """
        settled, seen = self._settled, self._hello_bytes
        if len(seen) < HELLO_SIZE:
            head = self._receive(HELLO_SIZE - len(seen), settled)
            if settled is not self._settled or not isinstance(head, tuple) or not isinstance(head[0], bytes):
                return None  # a signal's handler has dispatched
            fds, complete = _descriptors(head)
            steps = self.reader.arrived(fds, complete=complete)
            if self._take(head, [partial(setattr, self, "_hello_bytes", seen + head[0]), *steps]) and fds:
                raise MalformedMessage("descriptors came with a hello")
            if len(self._hello_bytes) < HELLO_SIZE:
                return None
        return Hello.unpack(self._hello_bytes)

    @property
    def is_delivering(self) -> bool:
        """Whether there is something in `reader` that is to be taken from there before anything else is received."""
        return bool(self.reader.ready or self.reader.lost or self.reader.problem)

    @property
    def is_unsettled(self) -> bool:
        """Whether anything has been received that receive(), or whoever takes from `reader`, has to see to."""
        return bool(self.received) or self.is_delivering

    def receive(self) -> None:
        """Receive once, unless something has been received already, and settle that: see `reader`.

        Raises BlockingIOError if nothing is there, and EOFError at the end of the stream.
        """
        if self._compiled and not (self.received or self.reader.long):
            try:
                self.received.extend(map(float, filter(None, map(call, self._compiled))))
            except ConnectionError:
                raise EOFError from None
            self.last_used = time.monotonic()
            if not self.received:
                return
        settled = self._settled
        head = self._receive(min(self._to_skip, _CHUNK) or _CHUNK, settled)
        if head is None:
            return
        try:
            steps = self._steps(head)
        except (struct.error, ValueError):
            if settled is not self._settled:
                return  # a signal's handler has dispatched in the middle of it
            raise
        self._take(head, steps)

    def _take(self, head: _Received | float, steps: list[Step]) -> bool:
        """Settle the head, if it is still there.  Returns whether it was."""
        return take_head(self.received, head, (partial(setattr, self, "_settled", object()), *steps))

    def _receive(self, size: int, settled: object) -> _Received | float | None:
        """Receive once, unless something has been received already: into the long message, or so many bytes.

        Nothing is received if anything has been settled since `settled`, as then it may be something else that comes.
        Returns what is to be settled, which stays in `received`; None if there is nothing.  Raises EOFError at the end
        of the stream.
        """
        if not self.received:
            memory = self._memory
            try:
                if memory is None:
                    next(self._receiving(self._socket.recvmsg, size, settled), None)
                else:
                    with memory.getbuffer() as whole, whole[memory.tell() :] as room:
                        next(self._receiving(self._socket.recvmsg_into, (room,), settled), None)
            except ConnectionError:
                raise EOFError from None
            except OSError:
                if self.reader.long == CLOSED:
                    raise EOFError from None  # a signal's handler has dispatched, and has come to the end
                raise
            self.last_used = time.monotonic()
        head: _Received | float | None = head_of(self.received)
        if isinstance(head, tuple) and not head[0]:
            self._take(head, [])
            raise EOFError
        return head

    def _receiving(self, receive: Callable[..., _Received], room: object, settled: object) -> Iterator[object]:
        """Its next() receives into `received`, in one step: if nothing is there and nothing has been settled since."""
        received = map(receive, (room,), (_ANCILLARY_SIZE,), (_CLOEXEC,))
        is_same = map(is_, map(getattr, (self,), ("_settled",)), (settled,))
        return if_empty(self.received, chain.from_iterable(compress((received,), is_same)))

    def _steps(self, head: _Received | float) -> list[Step]:
        """The steps that take what has been received; see at_once.py."""
        reader = self.reader
        long_begins = partial(self.received.append, float("-1"))
        if isinstance(head, float):
            return self._allocated() if head < 0 else reader.cared(int(head), long_begins)
        what, (fds, complete) = head[0], _descriptors(head)
        if isinstance(what, int):
            return [] if self._memory is None else self._filled(self._memory, what, fds, complete=complete)
        if self._to_skip:
            return self._skipped(len(what), fds, complete=complete)
        return reader.taken(what, fds, complete=complete, long_begins=long_begins)

    def _allocated(self) -> list[Step]:
        """Get the memory for a long message, or else throw away what comes of it."""
        data, steps = self.reader.begun_long()
        try:
            # The value of a BytesIO is the very bytes object that was filled: what is received into it is the message.
            memory = io.BytesIO()
            memory.seek(self.reader.long - 1)
            memory.write(b"\0")
            memory.seek(0)
            memory.write(data)
        except MemoryError:
            return [*steps, partial(setattr, self, "_to_skip", self.reader.long - len(data))]
        return [*steps, partial(setattr, self, "_memory", memory)]

    def _filled(self, memory: io.BytesIO, count: int, fds: Sequence[int], *, complete: bool) -> list[Step]:
        if memory.tell() + count < self.reader.long:
            arrived = self.reader.arrived(fds, complete=complete) if fds or not complete else []
            return [partial(memory.seek, count, io.SEEK_CUR), *arrived]
        data, reason = b"", None
        try:
            data = memory.getvalue()
        except MemoryError:  # it gives back what it has in excess, and has lost everything if that fails
            reason = Lost.MEMORY
        finished = self.reader.finished_long(data, fds, complete=complete, reason=reason)
        return [partial(setattr, self, "_memory", None), *finished]

    def _skipped(self, count: int, fds: Sequence[int], *, complete: bool) -> list[Step]:
        left = partial(setattr, self, "_to_skip", self._to_skip - count)
        if count < self._to_skip:
            return [left, *(self.reader.arrived(fds, complete=complete) if fds or not complete else ())]
        return [left, *self.reader.finished_long(b"", fds, complete=complete, reason=Lost.MEMORY)]

    def _peek(self, size: int) -> bytes:
        try:
            return self._socket.recv(size, socket.MSG_PEEK)
        except (BlockingIOError, ConnectionError):
            return b""

    # The end

    def end(self) -> None:
        """Shut the socket down: neither side can write any more, and what was written can still be read."""
        self.ended = True
        with contextlib.suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, and the descriptors that came for messages which nobody has taken."""
        reader = self.reader
        reader.long = CLOSED
        self._socket.close()
        for head in self.received:
            if isinstance(head, tuple):
                reader.fds.extend(_descriptors(head)[0])
        for message in (*reader.ready, *(message for _, message in reader.lost)):
            reader.fds.extend(fd for fd in message.fds if fd != LOST_FD)
        self.received.clear()
        reader.ready.clear()
        reader.lost.clear()
        while reader.fds:
            os.close(reader.fds.pop())


def _descriptors(head: _Received) -> tuple[Sequence[int], bool]:
    """The descriptors in what recvmsg() has returned, and whether these are all."""
    _, ancillary, flags, _ = head
    if not ancillary and not flags & _RIGHTS_LOST:
        return (), True
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == _RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return fds, not flags & _RIGHTS_LOST
