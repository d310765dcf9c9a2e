# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The format of the dgram transport: messages of any size in datagrams of at most 1024 bytes.

A message is sent whole if header and payload fit 1016 bytes: u64 cookie = 0, header, payload.

Otherwise it is sent in fragments of at most 1024 bytes each: u64 cookie != 0, u64 total length of header and payload,
i32 pid of the sender, i32 socket number of the sender, then at most 1000 bytes of header and payload.  All fragments of
a message carry the same cookie, and the next message of that pid and socket carries another one.  File descriptors are
attached to the last fragment only.  All numbers are little-endian.

Source: Samba's messages_dgm, observed in the golden datagrams (tests/wire/vectors).

The Reassembler trusts no length.
Rule 1. A total over the limit is refused at the first fragment.
Rule 2. Memory is allocated only as bytes arrive.
Rule 3. The unfinished messages of one sender are bounded in number; the oldest is abandoned for a new one.
Rule 4. The bytes of all unfinished messages are bounded; the one that has made no progress for longest is abandoned.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator

from msgd.errors import MalformedMessage
from msgd.wire.header import HEADER_SIZE

DATAGRAM_MAX = 1024
WHOLE = struct.Struct("<Q")
FRAGMENT = struct.Struct("<QQii")
WHOLE_MAX = DATAGRAM_MAX - WHOLE.size
FRAGMENT_PAYLOAD_MAX = DATAGRAM_MAX - FRAGMENT.size
COOKIE_MAX = 0xFFFFFFFFFFFFFFFF
WHOLE_COOKIE = bytes(WHOLE.size)
"""The first bytes of a datagram that is a whole message."""


def fragment(message: bytes, cookie: int, pid: int, socket_number: int, start: int = 0) -> Iterator[bytes]:
    """The datagrams that carry `message` (header and payload) in fragments, from byte `start` on.

    `start` is a multiple of FRAGMENT_PAYLOAD_MAX.  `cookie` is neither 0 nor that of the previous message with the same
    pid and socket number.
    """
    prefix = FRAGMENT.pack(cookie, len(message), pid, socket_number)
    for offset in range(start, len(message), FRAGMENT_PAYLOAD_MAX):
        yield prefix + message[offset : offset + FRAGMENT_PAYLOAD_MAX]


class _Unfinished:
    """A message of which `arrived` bytes have come.  They are in `data`, which is None if there was no memory."""

    __slots__ = ("arrived", "cookie", "data", "deadline", "total")

    def __init__(self, cookie: int, total: int, deadline: float) -> None:
        self.cookie = cookie
        self.total = total
        self.deadline = deadline
        self.arrived = 0
        self.data: bytearray | None = bytearray()

    @property
    def held(self) -> int:
        """The bytes of memory that it takes."""
        return 0 if self.data is None else len(self.data)


class Reassembler:
    """Joins the fragments of any number of senders to messages.

    max_total: the largest header plus payload that is accepted, in bytes.  max_bytes: the bound on the bytes of all
    unfinished messages together (max_total if that is more).  per_sender: the bound on the unfinished messages of one
    process, each on a socket of its own.  timeout: an unfinished message is abandoned that many seconds after its last
    fragment.  `now` is the time in seconds on a clock of the caller's choice.
    """

    def __init__(self, max_total: int, max_bytes: int, per_sender: int, timeout: float) -> None:
        self._max_total = max_total
        self._max_bytes = max(max_bytes, max_total)
        self._per_sender = per_sender
        self._timeout = timeout
        self._bytes = 0
        self._senders: dict[int, dict[int, _Unfinished]] = {}
        self.unfinished: OrderedDict[tuple[int, int], _Unfinished] = OrderedDict()
        """The unfinished messages by (pid, socket number), the one without progress for longest first."""
        self._abandoned = 0

    def __len__(self) -> int:
        return len(self.unfinished)

    def take_abandoned(self) -> int:
        """The number of messages that were abandoned since the last call."""
        abandoned, self._abandoned = self._abandoned, 0
        return abandoned

    def add(self, datagram: bytes, credential_pid: int | None, now: float) -> bytes | None:
        """Add one fragment; return header plus payload if it completes its message, otherwise None.

        `credential_pid` is the sender's pid according to the kernel, None where the kernel cannot tell.  Raises
        MalformedMessage for bytes that are not a fragment, or not that sender's.  The unfinished message that they
        claim to belong to is kept, unless they change its total or exceed it.  Raises MemoryError with the last
        fragment of a message for which there was not enough memory.
        """
        if len(datagram) <= FRAGMENT.size:
            raise MalformedMessage(f"{len(datagram)} bytes are too short for a fragment")
        if len(datagram) > DATAGRAM_MAX:
            raise MalformedMessage(f"a fragment has at most {DATAGRAM_MAX} bytes")
        cookie, total, pid, socket_number = FRAGMENT.unpack_from(datagram)
        if credential_pid is not None and pid != credential_pid:
            raise MalformedMessage(f"pid {credential_pid} sent a fragment in the name of pid {pid}")
        if not HEADER_SIZE <= total <= self._max_total:
            raise MalformedMessage(f"a total of {total} bytes is outside {HEADER_SIZE} to {self._max_total}")
        unfinished = self._unfinished(pid, socket_number, cookie, total, now)
        length = unfinished.arrived + len(datagram) - FRAGMENT.size
        if total != unfinished.total or length > total:
            self._forget(pid, socket_number)
            raise MalformedMessage(f"fragments of {length} bytes for a message announced as {unfinished.total}")
        if unfinished.data is not None:
            try:
                unfinished.data += memoryview(datagram)[FRAGMENT.size :]
                self._bytes += length - unfinished.arrived
            except MemoryError:  # give up what is held; what is still to come is only counted
                self._bytes -= unfinished.held
                unfinished.data = None
        unfinished.arrived = length
        unfinished.deadline = now + self._timeout
        self.unfinished.move_to_end((pid, socket_number))
        if length < total:
            while self._bytes > self._max_bytes:
                self._abandon(*next(iter(self.unfinished)))
            return None
        self._forget(pid, socket_number)
        if unfinished.data is None:
            raise MemoryError
        return bytes(unfinished.data)

    def expire(self, now: float) -> None:
        """Abandon the messages whose last fragment is older than the timeout."""
        while self.unfinished:
            key, unfinished = next(iter(self.unfinished.items()))
            if unfinished.deadline >= now:
                break
            self._abandon(*key)

    def _unfinished(self, pid: int, socket_number: int, cookie: int, total: int, now: float) -> _Unfinished:
        """The unfinished message of a fragment.  A first fragment begins one, and others may be abandoned for it."""
        sockets = self._senders.get(pid, {})
        unfinished = sockets.get(socket_number)
        if unfinished is not None:
            if unfinished.cookie == cookie and unfinished.deadline >= now:
                return unfinished
            self._abandon(pid, socket_number)
        while len(sockets) >= self._per_sender:
            self._abandon(pid, next(iter(sockets)))
        unfinished = _Unfinished(cookie, total, now + self._timeout)
        self._senders.setdefault(pid, {})[socket_number] = unfinished
        self.unfinished[pid, socket_number] = unfinished
        return unfinished

    def _abandon(self, pid: int, socket_number: int) -> None:
        self._abandoned += 1
        self._forget(pid, socket_number)

    def _forget(self, pid: int, socket_number: int) -> None:
        self._bytes -= self.unfinished.pop((pid, socket_number)).held
        sockets = self._senders[pid]
        del sockets[socket_number]
        if not sockets:
            del self._senders[pid]
