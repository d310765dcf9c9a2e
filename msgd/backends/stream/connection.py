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
import time
from collections.abc import Callable, Collection, Iterator, Sequence

from msgd.errors import MalformedMessage, NoSuchProcess, TransportError
from msgd.linux import Credentials, unix_socket
from msgd.presence import Presence
from msgd.wire.header import MAX_FDS, Message
from msgd.wire.stream import HELLO_SIZE, FrameReader, Hello

_CHUNK = 1 << 16
"""Bytes asked for in one read of short frames."""

_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)

_NOT_LISTENING = frozenset((errno.ENOENT, errno.ECONNREFUSED, errno.EPROTOTYPE))
"""What connect() fails with where no process listens with a stream socket."""


class MessageLost(Exception):
    """There was no memory for a long message, which has come to its end; `message` is that one without its data."""

    def __init__(self, message: Message) -> None:
        super().__init__()
        self.message = message


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
        "_begun", "_hello_bytes", "_memory", "_next_hello", "_socket", "_to_skip", "ended", "fd", "hello", "is_ours",
        "last_used", "messages", "pid", "reader",
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
        self.pid = pid
        self.is_ours = is_ours
        self.ended = False
        self.hello: Hello | None = None
        self.messages: Iterator[Message] = iter(())
        """What receive() has read and nobody has taken yet.  Whoever takes a message closes its descriptors."""
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
        return self.reader.long if self._memory is None and not self._to_skip else 0

    @property
    def memory_held(self) -> int:
        """Bytes allocated for a long message that has begun to arrive."""
        return self.reader.long if self._memory is not None else 0

    def has_unread(self) -> bool:
        """Whether there is something to receive besides the end."""
        return bool(self._peek(1))

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
        """Receive the hello or more of it.  Returns None while it is not complete.  Raises what receive() raises."""
        missing = HELLO_SIZE - len(self._hello_bytes)
        if missing:
            self._hello_bytes += self._receive(missing)
            if self.reader.fds:
                raise MalformedMessage("descriptors came with a hello")
            if len(self._hello_bytes) < HELLO_SIZE:
                return None
        return Hello.unpack(self._hello_bytes)

    def receive_plain(self, deliver: Callable[[Message], object]) -> bool:
        """Receive once, and pass on plain messages; the compiled twin of receive().  Only if the reader is compiled
        and no long message is arriving.

        Returns whether that was all; if not, the others are `messages`.  Raises what receive() raises.
        """
        try:
            more = self.reader.receive(self.fd, deliver)
        except ConnectionError:
            raise EOFError from None
        self.last_used = time.monotonic()
        if more is None:
            return True
        self.messages = more
        return False

    def receive(self) -> None:
        """Receive once; then `messages` are those that this has completed.  Call it when all of them are taken.

        Raises BlockingIOError if nothing is there, EOFError at the end of the stream, MalformedMessage, and
        MessageLost at the end of a long message for which there was no memory.
        """
        reader = self.reader
        if not reader.long:
            self.messages = reader.feed(self._receive(_CHUNK))
            return
        if self._to_skip:
            self._skip()
            return
        # The value of a BytesIO is the very bytes object that was filled: what is received into it is the message.
        try:
            memory = self._memory or self._allocate()
        except MemoryError:
            self._memory, self._to_skip = None, reader.skip_long()
            self.messages = iter(())
            return
        with memory.getbuffer() as whole, whole[memory.tell() :] as room:
            count = self._receive_into(room)
        if memory.seek(count, io.SEEK_CUR) == reader.long:
            self._memory = None
            self.messages = iter((reader.finish_long(memory.getvalue()),))

    def _skip(self) -> None:
        """Receive more of the message that is lost, and throw it away."""
        self._to_skip -= len(self._receive(min(self._to_skip, _CHUNK)))
        if not self._to_skip:
            raise MessageLost(self.reader.finish_long(b""))

    def _allocate(self) -> io.BytesIO:
        """Get the memory for a long message; it is positioned behind what has arrived of it."""
        memory = self._memory = io.BytesIO()
        memory.seek(self.reader.long - 1)
        memory.write(b"\0")
        memory.seek(0)
        memory.write(self.reader.begin_long())
        return memory

    def _receive(self, size: int) -> bytes:
        try:
            chunk, ancillary, flags, _ = self._socket.recvmsg(size, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            raise EOFError from None
        if not chunk:
            raise EOFError
        if ancillary or flags & socket.MSG_CTRUNC:
            self._take_fds(ancillary, flags)
        self.last_used = time.monotonic()
        return chunk

    def _receive_into(self, room: memoryview) -> int:
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into([room], _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            raise EOFError from None
        if not count:
            raise EOFError
        if ancillary or flags & socket.MSG_CTRUNC:
            self._take_fds(ancillary, flags)
        self.last_used = time.monotonic()
        return count

    def _take_fds(self, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        fds = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == _RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        self.reader.add_fds(fds, complete=not flags & socket.MSG_CTRUNC)

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
        """Close the socket, and the descriptors that came for a message that is not complete."""
        self._socket.close()
        while self.reader.fds:
            os.close(self.reader.fds.pop())
