"""Datagrams of at most 1024 bytes, and messages of any size cut into them and put together again.

Whole, when header and payload fit 1016 bytes:  u64 cookie = 0, header, payload.
In fragments otherwise, each at most 1024 bytes:  u64 cookie != 0, u64 total length of header and payload,
i32 pid and i32 socket number of the sender, then at most 1000 bytes of header and payload.  All fragments of a
message have its cookie, the next message of that (pid, socket) has another; file descriptors ride on the last.
All little-endian.  (Samba's messages_dgm; observed in the golden datagrams, cookie 1 and onwards.)

The reassembler trusts no length: a total over the limit is refused at the first fragment, memory is taken only as
bytes arrive, and both the unfinished messages of one sender process and the bytes of all are bounded, the oldest and
the stalest giving way.
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
FRAGMENT_MAX = DATAGRAM_MAX - FRAGMENT.size
COOKIE_MAX = 0xFFFFFFFFFFFFFFFF
WHOLE_COOKIE = bytes(WHOLE.size)
"""What a datagram that is a whole message starts with."""


def fragment(message: bytes, cookie: int, pid: int, socket_number: int, start: int = 0) -> Iterator[bytes]:
    """The datagrams that carry `message` (header and payload) in fragments, from byte `start` on.

    `start` is a multiple of FRAGMENT_MAX; `cookie` is not 0 and not the last one's of this (pid, socket_number).
    """
    prefix = FRAGMENT.pack(cookie, len(message), pid, socket_number)
    for offset in range(start, len(message), FRAGMENT_MAX):
        yield prefix + message[offset : offset + FRAGMENT_MAX]


class _Unfinished:
    __slots__ = ("cookie", "data", "deadline", "total")

    def __init__(self, cookie: int, total: int, deadline: float) -> None:
        self.cookie = cookie
        self.total = total
        self.deadline = deadline
        self.data = bytearray()


class Reassembler:
    """Puts fragments of any number of senders together again.

    max_total: largest header plus payload taken, in bytes.  max_bytes: bytes collected of all unfinished messages
    together (at least max_total); past it those that have waited longest for their next fragment are abandoned.
    per_sender: unfinished messages (sockets) a sender process may have; one more abandons its oldest.  timeout: seconds
    after its last fragment an unfinished message is abandoned.  Times are whatever clock the caller passes as `now`, in
    seconds.
    """

    def __init__(self, max_total: int, max_bytes: int, per_sender: int, timeout: float) -> None:
        self._max_total = max_total
        self._max_bytes = max(max_bytes, max_total)
        self._per_sender = per_sender
        self._timeout = timeout
        self._bytes = 0
        self._senders: dict[int, dict[int, _Unfinished]] = {}
        self.unfinished: OrderedDict[tuple[int, int], _Unfinished] = OrderedDict()
        """All of them by (pid, socket), the one that has waited longest first."""
        self._abandoned = 0

    def __len__(self) -> int:
        return len(self.unfinished)

    def take_abandoned(self) -> int:
        """The number of messages of which the rest never came, since the last call."""
        abandoned, self._abandoned = self._abandoned, 0
        return abandoned

    def add(self, datagram: bytes, credential_pid: int | None, now: float) -> bytes | None:
        """Take one fragment; the whole header plus payload if it was the last, else None.

        credential_pid is the sender's pid as the kernel tells it, None where it cannot.
        Raises MalformedMessage for bytes that are no fragment, or not the sender's; what was collected of the
        message they claim to belong to stays as it was unless the lie is in the claim itself (total, overrun).
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
        length = len(unfinished.data) + len(datagram) - FRAGMENT.size
        if total != unfinished.total or length > total:
            self._forget(pid, socket_number)
            raise MalformedMessage(f"fragments of {length} bytes for a message announced as {unfinished.total}")
        unfinished.data += memoryview(datagram)[FRAGMENT.size :]
        unfinished.deadline = now + self._timeout
        self._bytes += len(datagram) - FRAGMENT.size
        self.unfinished.move_to_end((pid, socket_number))
        if length < total:
            while self._bytes > self._max_bytes:
                self._abandon(*next(iter(self.unfinished)))
            return None
        self._forget(pid, socket_number)
        return bytes(unfinished.data)

    def expire(self, now: float) -> None:
        """Abandon what has waited too long."""
        while self.unfinished:
            key, unfinished = next(iter(self.unfinished.items()))
            if unfinished.deadline >= now:
                break
            self._abandon(*key)

    def _unfinished(self, pid: int, socket_number: int, cookie: int, total: int, now: float) -> _Unfinished:
        """The message a fragment belongs to; begun, and others abandoned for it, if it is the first."""
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
        self._bytes -= len(self.unfinished.pop((pid, socket_number)).data)
        sockets = self._senders[pid]
        del sockets[socket_number]
        if not sockets:
            del self._senders[pid]
