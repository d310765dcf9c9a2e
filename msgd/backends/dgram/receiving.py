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

What is received is in `_received` until it has been settled, or in the inbox: an exception that a signal's handler
raises loses and doubles nothing, and the next receive() begins with what is left (at_once.py).  A handler may dispatch,
too, at any moment: an inner receive() goes on with the head of `_received`, and the outer one finds another head, or
none.  What is there is settled before more is received.  The compiled twin of the loop takes many datagrams in one
call, and delivers those at once that are in front of the first that is not plain.  That one and those behind it go into
`_received`, too.
"""

from __future__ import annotations

import array
import io
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any, Final

from msgd.backends.at_once import Step, giving, head_of, if_empty, move_all, take_head
from msgd.backends.base import Deliver
from msgd.backends.kept_memory import LONG, keep_memory
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

_TRUNCATED, _RIGHTS_LOST, _CLOEXEC = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC), int(socket.MSG_CMSG_CLOEXEC)
"""Plain numbers: the operators of an enum take half a microsecond each."""

_DATAGRAMS_PER_CALL = 256
"""receive() returns after this many, so that a flood does not keep dispatch from its other work."""

_CALLS_PER_CALL = 8
"""Where the compiled twin takes up to 32 datagrams in one call: receive() returns after so many of them."""

_KNOWN_SENDERS_MAX = 1024
"""Checked credentials that are remembered; the table is emptied when it is full."""

_WHOLE_MIN = len(WHOLE_COOKIE) + HEADER_SIZE

Ancillary = list[tuple[int, int, bytes]]

Datagram = tuple[Any, ...]
"""One datagram, as recvmsg() returns it: the bytes, their ancillary data, flags, and an address that nobody needs.

One that may be long is as recvmsg_into() returns it: its length stands in place of the bytes, which are in the buffer.
"""


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
            io.BytesIO,
        )
        self._presence = presence
        self._drops = drops
        self._decoder = MessageDecoder()
        self._assembly: Any = None if native is None else self.reassembler.compiled()
        self._known_senders: dict[bytes, int] = {}
        self._received: deque[Any] = deque()
        """The datagrams that have been received and are not settled, the oldest first.

        A float among them is a time: the unfinished messages that are too old by then are to be given up.
        """
        self._take_short = self._taking_short()
        self._buffer = bytearray()
        """For a datagram that may be long; `_received` has only its length."""
        self._unwanted: deque[int] = deque()
        """Descriptors to be closed."""

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
        while self._received:
            one = self._received.popleft()
            self._unwanted.extend(() if isinstance(one, float) else _split_ancillary(one[1])[1])
        self._close_unwanted()

    def receive(self, deliver: Deliver) -> None:
        """Read datagrams until there are none, or a bounded number of them; pass on the messages they complete."""
        self._close_unwanted()
        if self._decoder.addresses is None:
            self._receive_singly(deliver)
        else:
            self._receive_together(deliver)
        if self.reassembler.unfinished and not self.is_closed:
            self._received.append(time.monotonic())
        self._settle_all(deliver)

    def _receive_together(self, deliver: Deliver) -> None:
        """Do what _receive_singly() does, many datagrams in one call."""
        addresses, assembly, take = self._decoder.addresses, self._assembly, native.receive_datagrams
        for _ in range(_CALLS_PER_CALL):
            self._settle_all(deliver)
            if self.is_closed:
                return
            more, lost = take(addresses, self.socket.fileno(), self._known_senders, deliver, self._received, assembly)
            if lost:
                self._drops("no memory left", "datagrams", lost)
            if assembly.longest > LONG:
                keep_memory()
            if not (more or self._received):
                return

    def _receive_singly(self, deliver: Deliver) -> None:
        """Take one datagram after the other."""
        received, unfinished = self._received, self.reassembler.unfinished
        senders, decode = self._known_senders, self._decoder.decode
        pair: list[Any] = [None, None]
        give, take_short = giving(received, pair, deliver), self._take_short
        for _ in range(_DATAGRAMS_PER_CALL):
            try:
                if not received:
                    if self.is_closed:
                        return
                    next(self._taking_long() if unfinished else take_short)
                head = received[0]
            except BlockingIOError:
                return
            except IndexError:  # a signal's handler has dispatched
                continue
            if head.__class__ is tuple:
                datagram, ancillary, flags, _ = head
                if (
                    len(ancillary) == 1
                    and flags == _CLOEXEC
                    and datagram.__class__ is bytes
                    and _WHOLE_MIN <= len(datagram) <= DATAGRAM_MAX
                ):
                    pid = senders.get(ancillary[0][2])
                    if pid is not None and datagram.startswith(WHOLE_COOKIE):
                        message = decode(datagram, len(WHOLE_COOKIE))
                        if message.src.pid == pid:
                            pair[0], pair[1] = head, message
                            next(give)
                            continue
            self._settle(head, deliver)

    def _taking_short(self) -> Iterator[object]:
        """Each next() receives one datagram, and puts it behind what is in `_received`, in one step."""
        return map(self._received.append, self._receiving(self.socket.recvmsg, LONG_DATAGRAM_MAX))

    def _taking_long(self) -> Iterator[object]:
        """The same for a datagram that is likely to be long, unless something is in `_received`.

        It is read into one buffer that is used again.  With a new one each time, malloc would return its memory to the
        system and fetch it again, page by page.  Whoever receives settles first what is in it.
        """
        if not self._buffer:
            self._buffer = bytearray(LONG_DATAGRAM_MAX)
        return if_empty(self._received, self._receiving(self.socket.recvmsg_into, (self._buffer,)))

    def _receiving(self, receive: Callable[..., Datagram], room: object) -> Iterator[Datagram]:
        return map(receive, repeat(room), repeat(_ANCILLARY_SIZE), repeat(_CLOEXEC))

    def _settle_all(self, deliver: Deliver) -> None:
        received = self._received
        while received:
            self._settle(head_of(received), deliver)

    def _settle(self, head: float | Datagram | None, deliver: Deliver) -> None:
        """Do what the head of `_received` calls for (None: a signal's handler has).

        All that is to be changed is found out first.  Then it is changed in one step, in which the head leaves the
        queue, if it is still there.  So an exception that a signal's handler raises leaves everything as it was, or
        settled.
        """
        if isinstance(head, float):
            steps: list[Step] = []
            self.reassembler.expire(head, steps)
            take_head(self._received, head, steps)
            self._count_abandoned()
        elif head is not None:
            self._receive_checked(head, deliver)

    def _receive_checked(self, head: Datagram, deliver: Deliver) -> None:
        """Check everything about the datagram at the head, and deliver the message that it is or completes."""
        credentials, fds = _split_ancillary(head[1])
        steps: list[Step] = []
        messages: list[Message] | None = None
        reason = None
        detail = ""
        try:
            messages = self._checked(head, credentials, tuple(fds), steps)
        except MalformedMessage as error:
            reason, detail = "malformed or forged", f"a datagram of {_describe(credentials)}: {error}"
        except _UntrustedUser as error:
            reason, detail = "of a user not to be heard", str(error)
        except MemoryError:
            reason, detail = "no memory left", f"a message of {_describe(credentials)}"
        if messages is not None:
            steps += [partial(deliver, message) for message in messages]
        elif fds:
            steps.append(partial(self._unwanted.extend, fds))
        try:
            was_there = take_head(self._received, head, steps)
        except MemoryError:
            was_there = True
            if messages is not None:  # of others, a part is lost, which the Reassembler finds
                reason, detail = "no memory left", f"a message of {_describe(credentials)}"
        if was_there and reason is not None:
            self._drops(reason, detail)
        self._close_unwanted()
        self._count_abandoned()

    def _checked(
        self, head: Datagram, credentials: bytes, fds: tuple[int, ...], steps: list[Step]
    ) -> list[Message] | None:
        """The messages that a datagram holds or completes, None if it is a part of one.

        `steps` gets what is to be done about it.  Raises MalformedMessage, _UntrustedUser.
        """
        received, _, flags, _ = head
        datagram = received if isinstance(received, bytes) else memoryview(self._buffer)[:received]
        pid = self._check_credentials(credentials)
        if flags & _TRUNCATED:
            raise MalformedMessage(f"it is longer than the {len(datagram)} bytes that may come here")
        if flags & _RIGHTS_LOST or len(fds) > MAX_FDS:
            raise MalformedMessage(f"it has more than {MAX_FDS} descriptors, or this process has none left")
        if datagram[: len(BATCH_COOKIE)] == BATCH_COOKIE:
            if fds:
                raise MalformedMessage("descriptors came with a batch")
            return self._batch(bytes(datagram), pid)
        message = self._message(datagram, pid, fds, steps)
        if message is None:
            if fds:
                raise MalformedMessage("descriptors ride on a fragment that is not the last")
            return None
        if message.src.pid != pid:
            raise MalformedMessage(f"its source says pid {message.src.pid}")
        return [message]

    def _batch(self, datagram: bytes, pid: int) -> list[Message]:
        """The messages of a batch, once all of them have been checked."""
        messages = [self._decoder.decode(one) for one in split_batch(datagram)]
        for message in messages:
            if message.src.pid != pid:
                raise MalformedMessage(f"the source of a message in a batch says pid {message.src.pid}")
        return messages

    def _message(
        self, datagram: bytes | memoryview, pid: int, fds: tuple[int, ...], steps: list[Step]
    ) -> Message | None:
        """The message if the datagram is a whole one or the last fragment of one, otherwise None."""
        is_whole = datagram[: len(WHOLE_COOKIE)] == WHOLE_COOKIE
        if len(datagram) > DATAGRAM_MAX and (is_whole or not self.reassembler.unfinished):
            raise MalformedMessage(f"it has {len(datagram)} bytes; only later fragments and batches may exceed 1024")
        if is_whole:
            return self._decoder.decode(bytes(datagram), len(WHOLE_COOKIE), fds)
        header_and_data = self.reassembler.add(datagram, pid, time.monotonic(), steps)
        if header_and_data is None:
            return None
        header, data = header_and_data
        if len(data) > LONG:
            keep_memory()
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

    def _close_unwanted(self) -> None:
        """Close the descriptors that nobody takes; each leaves the list in the call that closes it."""
        if self._unwanted:
            move_all(self._unwanted, os.close)

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
