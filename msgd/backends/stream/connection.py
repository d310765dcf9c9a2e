"""One connected AF_UNIX stream socket: messages of the other side's stream, and bytes of ours.

What it knows about the kernel, so that the stream backend need not: the credentials of the other side are those of
the moment it connected (or began to listen); shutdown() is atomic, what was written before it stays readable; a
reset is reported only after everything has been read; a write of no bytes tells whether the other side still reads;
descriptors arrive with the first byte they were sent with, and one read never takes those of two writes.
"""

from __future__ import annotations

import array
import contextlib
import io
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence

from msgd.errors import MalformedMessage
from msgd.wire.header import MAX_FDS, Message
from msgd.wire.stream import HELLO_SIZE, FrameReader, Hello

_CHUNK = 1 << 16
"""Bytes asked for in one read of short frames."""

_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


class Connection:
    """A non-blocking connected socket to the process `pid`; `is_ours` if this process has opened it.

    `ended`: we have shut it down.  `hello`: what the other side's stream began with,
    set by whoever has made sure that its messages may be delivered.  `last_used`: when it last took or brought bytes.
    """

    __slots__ = (
        "_begun", "_hello_bytes", "_memory", "_next_hello", "_reader", "_socket", "ended", "fd", "hello", "is_ours",
        "last_used", "messages", "pid",
    )  # fmt: skip

    def __init__(
        self, connected: socket.socket, pid: int, reader: FrameReader, next_hello: Callable[[], Hello], *, is_ours: bool
    ) -> None:
        self._socket = connected
        self._reader = reader
        self._next_hello = next_hello
        self._memory: io.BytesIO | None = None
        self._hello_bytes = b""
        self.fd = connected.fileno()
        self.pid = pid
        self.is_ours = is_ours
        self._begun = False
        self.ended = False
        self.hello: Hello | None = None
        self.messages: Iterator[Message] = iter(())
        """What receive() has brought and nobody has taken yet.  Descriptors in them are the taker's to close."""
        self.last_used = time.monotonic()

    # Our stream

    def write(self, buffers: Sequence[bytes | memoryview], fds: Collection[int] = ()) -> int:
        """Write what the socket takes, after a hello if it is the first, the descriptors with the first byte; how much.

        Raises BlockingIOError if it takes nothing now, ConnectionError if the connection is ended, OSError.
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

    # The other side's

    @property
    def is_in_frame(self) -> bool:
        """Whether a message has begun to come and is not complete."""
        return self._reader.is_in_frame

    @property
    def memory_wanted(self) -> int:
        """Bytes that the next receive() allocates for a long message, mostly 0."""
        return self._reader.long if self._memory is None else 0

    @property
    def memory_held(self) -> int:
        """Bytes allocated for a long message that has begun to come."""
        return self._reader.long if self._memory is not None else 0

    def has_unread(self) -> bool:
        """Whether there is something to receive besides the end."""
        return bool(self._peek(1))

    def peek_hello(self) -> Hello | None:
        """The hello, if it has come, without taking it; None also if it is none, which receive_hello() tells."""
        seen = self._hello_bytes
        if len(seen) < HELLO_SIZE:
            seen += self._peek(HELLO_SIZE - len(seen))
        if len(seen) < HELLO_SIZE:
            return None
        with contextlib.suppress(MalformedMessage):
            return Hello.unpack(seen)
        return None

    def receive_hello(self) -> Hello | None:
        """Receive the hello or more of it; None if it is not complete.  Raises what receive() raises."""
        missing = HELLO_SIZE - len(self._hello_bytes)
        if missing:
            self._hello_bytes += self._receive(missing)
            if self._reader.fds:
                raise MalformedMessage("descriptors ride on a hello")
            if len(self._hello_bytes) < HELLO_SIZE:
                return None
        return Hello.unpack(self._hello_bytes)

    def receive(self) -> None:
        """Receive once, when all `messages` are taken; then `messages` are what that has completed.

        Raises BlockingIOError if nothing is there, EOFError at the end of the stream, MalformedMessage.
        """
        reader = self._reader
        if not reader.long:
            self.messages = reader.feed(self._receive(_CHUNK))
            return
        # The value of a BytesIO is the very bytes object that was filled: what is received into it is the message.
        memory = self._memory or self._allocate()
        with memory.getbuffer() as whole, whole[memory.tell() :] as room:
            count = self._receive_into(room)
        if memory.seek(count, io.SEEK_CUR) == reader.long:
            self._memory = None
            self.messages = iter((reader.finish_long(memory.getvalue()),))

    def _allocate(self) -> io.BytesIO:
        """Get the memory for a long message; it is positioned behind what has come of it."""
        memory = self._memory = io.BytesIO()
        memory.seek(self._reader.long - 1)
        memory.write(b"\0")
        memory.seek(0)
        memory.write(self._reader.begin_long())
        return memory

    def _receive(self, size: int) -> bytes:
        try:
            chunk, ancillary, flags, _ = self._socket.recvmsg(size, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            raise EOFError from None
        self._take(len(chunk), ancillary, flags)
        return chunk

    def _receive_into(self, room: memoryview) -> int:
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into([room], _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            raise EOFError from None
        self._take(count, ancillary, flags)
        return count

    def _take(self, count: int, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        if not count:
            raise EOFError
        self.last_used = time.monotonic()
        if not ancillary and not flags & socket.MSG_CTRUNC:
            return
        fds = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == _RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        self._reader.add_fds(fds, complete=not flags & socket.MSG_CTRUNC)

    def _peek(self, size: int) -> bytes:
        try:
            return self._socket.recv(size, socket.MSG_PEEK)
        except (BlockingIOError, ConnectionError):
            return b""

    # The end

    def end(self) -> None:
        """Shut it down, so that neither side writes any more; what was written can still be read."""
        self.ended = True
        with contextlib.suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, and the descriptors that came for a message that is not complete."""
        self._socket.close()
        while self._reader.fds:
            os.close(self._reader.fds.pop())
