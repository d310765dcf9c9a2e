# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The format of the dgram transport: messages of any size in datagrams.

A message is sent whole if header and payload fit 1016 bytes: u64 cookie = 0, header, payload.

Otherwise it is sent in fragments of at most 1024 bytes: u64 cookie != 0, u64 total length of header and payload,
i32 pid of the sender, i32 socket number of the sender, then at most 1000 bytes of header and payload.  All fragments of
a message carry the same cookie, and the next message of that pid and socket carries another one.  File descriptors are
attached to the last fragment only.  All numbers are little-endian.

A process whose lock file has the line `datagram` reads longer fragments, too, but for the first of a message: that one
always fits 1024 bytes, so whoever reads it knows that longer datagrams may follow.  Such a process also reads batches,
several whole messages in one datagram of at most 64 KiB: u64 cookie with all bits set, then for each message u32
length, header, payload.  Each is one that fits a datagram of its own, and there are no descriptors.

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
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgd.errors import MalformedMessage
from msgd.wire.header import HEADER_SIZE

DATAGRAM_MAX = 1024
"""The longest datagram that Samba reads."""
LONG_DATAGRAM_MAX = 1 << 16
"""The longest datagram that msgd reads.  It fits any send buffer that Linux has by default."""
WHOLE = struct.Struct("<Q")
FRAGMENT = struct.Struct("<QQii")
WHOLE_MAX = DATAGRAM_MAX - WHOLE.size
FRAGMENT_PAYLOAD_MAX = DATAGRAM_MAX - FRAGMENT.size
COOKIE_MAX = 0xFFFFFFFFFFFFFFFE
"""The largest cookie of a fragment."""
WHOLE_COOKIE = bytes(WHOLE.size)
"""The first bytes of a datagram that is a whole message."""
BATCH_COOKIE = b"\xff" * WHOLE.size
"""The first bytes of a datagram that is a batch."""
BATCH_ITEM = struct.Struct("<I")
"""What precedes each message of a batch: its length in bytes."""


class Fragment(NamedTuple):
    """One datagram of a message: the two buffers that it consists of, and how much of the message it ends with."""

    buffers: tuple[bytes, memoryview]
    end: int


def fragments(
    header: bytes, data: bytes, cookie: int, pid: int, socket_number: int, start: int = 0, longest: int = DATAGRAM_MAX
) -> Iterator[Fragment]:
    """The fragments of a message of `header` (52 bytes) and `data`, which together do not fit one datagram.

    `start` is the `end` of the fragment before the first that is wanted.  `cookie` is neither 0 nor that of the
    previous message with the same pid and socket number.  `longest`: the longest datagram that the receiver reads.
    """
    total, payload = len(header) + len(data), memoryview(data)
    prefix = FRAGMENT.pack(cookie, total, pid, socket_number)
    if not start:
        start = min(FRAGMENT_PAYLOAD_MAX, total)
        yield Fragment((prefix + header, payload[: start - len(header)]), start)
    while start < total:
        end = min(start + longest - FRAGMENT.size, total)
        yield Fragment((prefix, payload[start - len(header) : end - len(header)]), end)
        start = end


def pack_batch(messages: Iterable[bytes]) -> bytes:
    """The datagram for these messages, each of them header and payload, at most WHOLE_MAX bytes."""
    parts = [BATCH_COOKIE]
    for message in messages:
        parts += BATCH_ITEM.pack(len(message)), message
    return b"".join(parts)


def split_batch(datagram: bytes) -> list[bytes]:
    """The messages in a batch, each of them header and payload.  Raises MalformedMessage."""
    messages: list[bytes] = []
    position = len(BATCH_COOKIE)
    while position < len(datagram):
        start = position + BATCH_ITEM.size
        if start > len(datagram):
            raise MalformedMessage(f"a batch ends in the middle of a length, after {len(messages)} messages")
        (length,) = BATCH_ITEM.unpack_from(datagram, position)
        position = start + length
        if not HEADER_SIZE <= length <= WHOLE_MAX or position > len(datagram):
            raise MalformedMessage(
                f"a message of {length} bytes in a batch with {len(datagram) - start} left;"
                f" {HEADER_SIZE} to {WHOLE_MAX} are allowed"
            )
        messages.append(datagram[start:position])
    if not messages:
        raise MalformedMessage("a batch has at least one message")
    return messages


class _Unfinished:
    """A message of which `length` bytes have come: its header, and its data, which is None if there was no memory."""

    __slots__ = ("cookie", "data", "deadline", "header", "length", "total")

    def __init__(self, cookie: int, total: int, deadline: float) -> None:
        self.cookie = cookie
        self.total = total
        self.deadline = deadline
        self.length = 0
        self.header = b""
        self.data: bytearray | None = bytearray()

    @property
    def held(self) -> int:
        """The bytes of memory that it takes."""
        return 0 if self.data is None else len(self.header) + len(self.data)

    def append(self, payload: memoryview) -> None:
        """Take a fragment's part; without memory, give up what is held, and only count what is still to come."""
        self.length += len(payload)
        missing = HEADER_SIZE - len(self.header)
        if missing:
            self.header += payload[:missing]
        if self.data is not None:
            try:
                self.data += payload[missing:]
            except MemoryError:
                self.data = None


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

    def add(self, datagram: bytes | memoryview, credential_pid: int | None, now: float) -> tuple[bytes, bytes] | None:
        """Add one fragment; return header and payload if it completes its message, otherwise None.

        `credential_pid` is the sender's pid according to the kernel, None where the kernel cannot tell.  Raises
        MalformedMessage for bytes that are not a fragment, or not that sender's.  The unfinished message that they
        claim to belong to is kept, unless they change its total or exceed it.  Raises MemoryError with the last
        fragment of a message for which there was not enough memory.
        """
        if len(datagram) <= FRAGMENT.size:
            raise MalformedMessage(f"{len(datagram)} bytes are too short for a fragment")
        if len(datagram) > LONG_DATAGRAM_MAX:
            raise MalformedMessage(f"a fragment has at most {LONG_DATAGRAM_MAX} bytes")
        cookie, total, pid, socket_number = FRAGMENT.unpack_from(datagram)
        if credential_pid is not None and pid != credential_pid:
            raise MalformedMessage(f"pid {credential_pid} sent a fragment in the name of pid {pid}")
        if not HEADER_SIZE <= total <= self._max_total:
            raise MalformedMessage(f"a total of {total} bytes is outside {HEADER_SIZE} to {self._max_total}")
        unfinished = self._unfinished(pid, socket_number, cookie, total, now)
        length = unfinished.length + len(datagram) - FRAGMENT.size
        if total != unfinished.total or length > total:
            self._forget(pid, socket_number)
            raise MalformedMessage(f"fragments of {length} bytes for a message announced as {unfinished.total}")
        self._bytes -= unfinished.held
        unfinished.append(memoryview(datagram)[FRAGMENT.size :])
        self._bytes += unfinished.held
        unfinished.deadline = now + self._timeout
        self.unfinished.move_to_end((pid, socket_number))
        if length < total:
            while self._bytes > self._max_bytes:
                self._abandon(*next(iter(self.unfinished)))
            return None
        self._forget(pid, socket_number)
        if unfinished.data is None:
            raise MemoryError
        return unfinished.header, bytes(unfinished.data)

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
