# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The receiving side of the dgram transport: from datagrams to delivered messages.

Rule 1. The kernel names the sender of each datagram (SO_PASSCRED).  Its pid must be the source pid of the message, and
        its uid must be root's, ours or a trusted one.
Rule 2. Nothing in a datagram is used before it is checked.  What is wrong is dropped and counted; no exception leaves
        receive() because of what a peer sent.
Rule 3. Every descriptor that arrives is closed here, unless it leaves with a message that is delivered.
Rule 4. A message for which there is no memory is dropped and counted, and the next one is received.
Rule 5. What a peer can make this process keep is bounded: credentials by number, unfinished messages by the
        Reassembler.
Rule 6. Of a batch in which anything is wrong, nothing is delivered.

Nearly every datagram is a whole message without descriptors, from a sender whose credentials were checked before.
receive() handles that case in its own loop; all others go through _receive_checked().

The compiled twin of that loop takes many datagrams in one call and delivers those at once that are in front of the
first that is not plain.  That one and those behind it wait in `_kept`, so that an exception which a signal's handler
raises loses none: the next receive() begins with them.
"""

from __future__ import annotations

import array
import os
import socket
import time
from collections import deque
from typing import Final

from msgd.backends.base import Deliver
from msgd.backends.sockets import bind_socket
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import MalformedMessage
from msgd.linux import CREDENTIALS_SIZE, Credentials, unix_socket
from msgd.native import native
from msgd.presence import Presence
from msgd.wire.dgram import (
    BATCH_COOKIE,
    DATAGRAM_MAX,
    LONG_DATAGRAM_MAX,
    WHOLE_COOKIE,
    Reassembler,
    split_batch,
)
from msgd.wire.header import HEADER_SIZE, MAX_FDS, Message, MessageDecoder

_ANCILLARY_SIZE = socket.CMSG_SPACE(CREDENTIALS_SIZE) + socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_CREDENTIALS = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)

_TRUNCATED, _RIGHTS_LOST = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)
"""Plain numbers: the operators of an enum take half a microsecond each."""

_DATAGRAMS_PER_CALL = 256
"""receive() returns after this many, so that a flood does not keep dispatch from its other work."""

_CALLS_PER_CALL = 8
"""Where the compiled twin takes up to 32 datagrams in one call: receive() returns after so many of them."""

_KNOWN_SENDERS_MAX = 1024
"""Checked credentials that are remembered; the table is emptied when it is full."""

_WHOLE_MIN = len(WHOLE_COOKIE) + HEADER_SIZE

Ancillary = list[tuple[int, int, bytes]]


class Receiver:
    """The bound socket of this process, and the checks that each datagram must pass."""

    def __init__(self, config: Config, presence: Presence, drops: Drops) -> None:
        self.socket = new_socket()
        self.is_closed = False
        """Whether close() was called, which a signal's handler may have done while receive() runs."""
        self.reassembler: Final = Reassembler(
            config.max_message_size + HEADER_SIZE,
            config.reassembly_bytes,
            config.reassembly_messages,
            config.reassembly_timeout,
        )
        self._presence = presence
        self._drops = drops
        self._decoder = MessageDecoder()
        self._known_senders: dict[bytes, int] = {}
        self._kept: deque[tuple[bytes, Ancillary, int]] = deque()
        """Datagrams that have been received together and are to be checked one by one."""
        self._buffer: bytearray | None = None
        """For datagrams that may be long, between two of them."""

    def bind(self) -> None:
        """Make the socket reachable under our pid.  Raises OSError."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        bind_socket(self.socket, self._presence)

    def close(self) -> None:
        """Close the socket.

        A signal's handler may call this in the middle of receive(), which then returns after the message at hand.
        """
        self.is_closed = True
        self.socket.close()
        while self._kept:
            for fd in _split_ancillary(self._kept.popleft()[1])[1]:
                os.close(fd)

    def receive(self, deliver: Deliver) -> None:
        """Read datagrams until there are none, or a bounded number of them; pass on the messages they complete."""
        if self._decoder.addresses is None:
            self._receive_singly(deliver)
        else:
            self._receive_together(deliver)
        if self.reassembler.unfinished and not self.is_closed:
            self.reassembler.expire(time.monotonic())
            self._count_abandoned()

    def _receive_together(self, deliver: Deliver) -> None:
        """Do what _receive_singly() does, many datagrams in one call, unless a long message is on its way."""
        kept, addresses, take = self._kept, self._decoder.addresses, native.receive_datagrams
        for _ in range(_CALLS_PER_CALL):
            more = False
            if not kept:  # otherwise an exception has left some here
                if self.reassembler.unfinished:
                    self._receive_singly(deliver)  # it needs one buffer for all of them
                    return
                more, lost = take(addresses, self.socket.fileno(), self._known_senders, deliver, kept.append)
                if lost:
                    self._drops("no memory left", "datagrams", lost)
            while kept:
                datagram, ancillary, flags = kept.popleft()
                self._receive_checked(datagram, ancillary, flags, deliver)
                if self.is_closed:
                    return
                more = True
            if not more:
                return

    def _receive_singly(self, deliver: Deliver) -> None:
        """Take one datagram after the other."""
        recvmsg, senders, decode = self.socket.recvmsg, self._known_senders, self._decoder.decode
        unfinished = self.reassembler.unfinished
        for _ in range(_DATAGRAMS_PER_CALL):
            try:
                if unfinished:
                    self._receive_long(deliver)
                    if self.is_closed:
                        return
                    continue
                datagram, ancillary, flags, _ = recvmsg(LONG_DATAGRAM_MAX, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            if len(ancillary) == 1 and flags == socket.MSG_CMSG_CLOEXEC and _WHOLE_MIN <= len(datagram) <= DATAGRAM_MAX:
                pid = senders.get(ancillary[0][2])
                if pid is not None and datagram.startswith(WHOLE_COOKIE):
                    message = decode(datagram, len(WHOLE_COOKIE))
                    if message.src.pid == pid:
                        deliver(message)
                        if self.is_closed:
                            return
                        continue
            self._receive_checked(datagram, ancillary, flags, deliver)
            if self.is_closed:
                return

    def _receive_long(self, deliver: Deliver) -> None:
        """Read a datagram that is probably long, and deliver what it holds or completes.  Raises BlockingIOError.

        It is read into one buffer that is used again.  With a new one each time, malloc would return its memory to the
        system and fetch it again, page by page.  A signal's handler that dispatches meanwhile gets a buffer of its own.
        """
        buffer, self._buffer = self._buffer or bytearray(LONG_DATAGRAM_MAX), None
        try:
            length, ancillary, flags, _ = self.socket.recvmsg_into((buffer,), _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
            self._receive_checked(memoryview(buffer)[:length], ancillary, flags, deliver)
        finally:
            self._buffer = buffer

    def _receive_checked(
        self, datagram: bytes | memoryview, ancillary: Ancillary, flags: int, deliver: Deliver
    ) -> None:
        """Check everything about one datagram, and deliver the message that it is or completes."""
        credentials, fds = _split_ancillary(ancillary)
        try:
            pid = self._check_credentials(credentials)
            if flags & _TRUNCATED:
                raise MalformedMessage(f"it is longer than the {len(datagram)} bytes that may come here")
            if flags & _RIGHTS_LOST or len(fds) > MAX_FDS:
                raise MalformedMessage(f"it has more than {MAX_FDS} descriptors, or this process has none left")
            if datagram[: len(BATCH_COOKIE)] == BATCH_COOKIE:
                if fds:
                    raise MalformedMessage("descriptors came with a batch")
                self._deliver_batch(bytes(datagram), pid, deliver)
                return
            message = self._message(datagram, pid, tuple(fds))
            if message is None:
                if fds:
                    raise MalformedMessage("descriptors ride on a fragment that is not the last")
                return
            if message.src.pid != pid:
                raise MalformedMessage(f"its source says pid {message.src.pid}")
            fds = array.array("i")  # they belong to the message now
            deliver(message)
        except MalformedMessage as error:
            self._drops("malformed or forged", f"a datagram of {_describe(credentials)}: {error}")
        except _UntrustedUser as error:
            self._drops("of a user not to be heard", str(error))
        except MemoryError:
            self._drops("no memory left", f"a message of {_describe(credentials)}")
        finally:
            for fd in fds:
                os.close(fd)
            self._count_abandoned()

    def _deliver_batch(self, datagram: bytes, pid: int, deliver: Deliver) -> None:
        """Deliver the messages of a batch, once all of them have been checked."""
        messages = [self._decoder.decode(one) for one in split_batch(datagram)]
        for message in messages:
            if message.src.pid != pid:
                raise MalformedMessage(f"the source of a message in a batch says pid {message.src.pid}")
        deque(map(deliver, messages), 0)  # one call into C: no exception of a signal's handler comes in between

    def _message(self, datagram: bytes | memoryview, pid: int, fds: tuple[int, ...]) -> Message | None:
        """The message if the datagram is a whole one or the last fragment of one, otherwise None."""
        is_whole = datagram[: len(WHOLE_COOKIE)] == WHOLE_COOKIE
        if len(datagram) > DATAGRAM_MAX and (is_whole or not self.reassembler.unfinished):
            raise MalformedMessage(f"it has {len(datagram)} bytes; only later fragments and batches may exceed 1024")
        if is_whole:
            return self._decoder.decode(bytes(datagram), len(WHOLE_COOKIE), fds)
        header_and_data = self.reassembler.add(datagram, pid, time.monotonic())
        if header_and_data is None:
            return None
        header, data = header_and_data
        return self._decoder.decode(header, 0, fds)._replace(data=data)

    def _check_credentials(self, credentials: bytes) -> int:
        """The sender's pid as the kernel gives it.  Raises MalformedMessage, _UntrustedUser."""
        if len(credentials) != CREDENTIALS_SIZE:
            raise MalformedMessage("it has no credentials")
        pid, uid, _ = Credentials.unpack(credentials)
        if uid not in self._presence.trusted_uids:
            raise _UntrustedUser(f"uid {uid} (pid {pid}) is neither root, this user nor in msgd:trusted users")
        if len(self._known_senders) >= _KNOWN_SENDERS_MAX:
            self._known_senders.clear()
        self._known_senders[credentials] = pid
        return pid

    def _count_abandoned(self) -> None:
        abandoned = self.reassembler.take_abandoned()
        if abandoned:
            self._drops("the rest never came", "fragments of a large message", abandoned)


class _UntrustedUser(Exception):
    """The sender runs as a user whose messages are not accepted."""


def new_socket() -> socket.socket:
    """A datagram socket that does not block, not yet bound."""
    return unix_socket(socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


def _split_ancillary(ancillary: Ancillary) -> tuple[bytes, array.array[int]]:
    """The packed credentials (empty if there are none) and the descriptors of a datagram."""
    credentials, fds = b"", array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == _RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        elif (level, kind) == _CREDENTIALS:
            credentials = content
    return credentials, fds


def _describe(credentials: bytes) -> str:
    if len(credentials) != CREDENTIALS_SIZE:
        return "an unknown process"
    pid, uid, _ = Credentials.unpack(credentials)
    return f"pid {pid}, uid {uid}"
