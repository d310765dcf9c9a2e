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
Rule 5. It can be interrupted at any moment, and used meanwhile: add() and expire() only say what is to be changed.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

from msgd.errors import MalformedMessage
from msgd.native import native
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


class Memory(Protocol):
    """Where the data of a message is written to: an io.BytesIO, which this room does not make itself."""

    @property
    def closed(self) -> bool:
        """Whether there was no memory for something, and all is lost."""

    def write(self, data: memoryview, /) -> int:
        """Write at the position, and move it."""

    def seek(self, position: int, /) -> int:
        """Go to a position."""

    def getvalue(self) -> bytes:
        """What has been written; not a copy."""


class _Unfinished:
    """A message of which `length` bytes have come: its `header`, and its data in `received`.

    The value of a BytesIO is the very bytes object that was filled, so the data is copied once.  `received` is None
    where there was no memory for some of it.  `held` is what the Reassembler counts of it, in bytes.
    """

    __slots__ = ("cookie", "deadline", "header", "held", "length", "received", "total")

    def __init__(self, cookie: int, total: int, deadline: float, payload: memoryview, received: Memory) -> None:
        self.cookie = cookie
        self.total = total
        self.deadline = deadline
        self.length = self.held = len(payload)
        self.header = bytes(payload[:HEADER_SIZE])
        self.received: Memory | None = received
        received.write(payload[HEADER_SIZE:])

    @property
    def is_lost(self) -> bool:
        """Whether there was no memory for some of it.  A BytesIO that cannot grow has lost all of it, and is closed."""
        return self.held != self.length or self.received is None or self.received.closed


_Key = tuple[int, int]
"""The pid and the socket number of a sender."""


class Reassembler:
    """Joins the fragments of any number of senders to messages.

    max_total: the largest header plus payload that is accepted, in bytes.  max_bytes: the bound on the bytes of all
    unfinished messages together (max_total if that is more).  per_sender: the bound on the unfinished messages of one
    process, each on a socket of its own.  timeout: an unfinished message is abandoned that many seconds after its last
    fragment.  memory: io.BytesIO.  `now` is the time in seconds on a clock of the caller's choice.
    """

    __slots__ = (
        "_abandoned", "_bytes", "_max_bytes", "_max_total", "_memory", "_per_sender", "_timeout", "unfinished",
    )  # fmt: skip

    def __init__(self, max_total: int, max_bytes: int, per_sender: int, timeout: float, memory: type[Memory]) -> None:
        self._max_total = max_total
        self._memory = memory
        self._max_bytes = max(max_bytes, max_total)
        self._per_sender = per_sender
        self._timeout = timeout
        self._bytes = 0
        self.unfinished: OrderedDict[_Key, _Unfinished] = OrderedDict()
        """The unfinished messages by (pid, socket number), the one without progress for longest first."""
        self._abandoned = 0

    def compiled(self) -> Any:
        """The compiled twin of add(), for plain fragments, which changes this object too."""
        limits = self._max_total, self._max_bytes, self._per_sender, self._timeout
        return native.Assembly(self, _Unfinished, self._memory, *limits)

    def __len__(self) -> int:
        return len(self.unfinished)

    def take_abandoned(self) -> int:
        """The number of messages that were abandoned since the last call."""
        abandoned, self._abandoned = self._abandoned, 0
        return abandoned

    def add(
        self, datagram: bytes | memoryview, credential_pid: int | None, now: float, steps: list[Callable[[], object]]
    ) -> tuple[bytes, bytes] | None:
        """Add one fragment; return header and payload if it completes its message, otherwise None.

        Nothing is changed yet: `steps` gets the calls that change it, all of them into C.  The caller makes them in one
        go, whatever is raised here, and together with what it does about the message itself.  If it cannot, it may add
        the same fragment again.  MemoryError in them is a part of a message that is lost.

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
        key, payload = (pid, socket_number), memoryview(datagram)[FRAGMENT.size :]
        before = self.unfinished.get(key)
        if before is None or before.cookie != cookie or before.deadline < now:
            return self._begin(
                key, before, _Unfinished(cookie, total, now + self._timeout, payload, self._memory()), steps
            )
        length = before.length + len(payload)
        if total != before.total or length > total:
            self._remove({key: before}, steps, abandoned=0)
            raise MalformedMessage(f"fragments of {length} bytes for a message announced as {before.total}")
        if length == total:
            self._remove({key: before}, steps, abandoned=0)
            return _join(before, payload)
        self._continue(key, before, payload, now, steps)
        return None

    def _begin(
        self, key: _Key, before: _Unfinished | None, new: _Unfinished, steps: list[Callable[[], object]]
    ) -> tuple[bytes, bytes] | None:
        """A first fragment: it may be all of its message, and others may be abandoned for it."""
        gone = {} if before is None else {key: before}
        if len(self.unfinished) >= self._per_sender:
            others = [one for one in self._all() if one[0][0] == key[0] and one[0] != key]
            gone.update(others[: max(0, len(others) + 1 - self._per_sender)])
        if new.length >= new.total:
            self._remove(gone, steps, abandoned=len(gone))
            if new.length > new.total:
                raise MalformedMessage(f"a fragment of {new.length} bytes for a message announced as {new.total}")
            return _join(new, memoryview(b""))
        self._remove_for(key, new.length, gone, steps)
        steps.append(partial(self.unfinished.__setitem__, key, new))
        return None

    def _continue(
        self,
        key: _Key,
        before: _Unfinished,
        payload: memoryview,
        now: float,
        steps: list[Callable[[], object]],
    ) -> None:
        """A fragment in the middle of its message.  What is held of one that has lost a part is let go of."""
        steps += (
            partial(setattr, before, "length", before.length + len(payload)),
            partial(setattr, before, "deadline", now + self._timeout),
            partial(self.unfinished.move_to_end, key),
        )
        if before.received is None or before.is_lost:
            steps.append(partial(setattr, before, "received", None))
            wanted = -before.held
        else:
            missing = HEADER_SIZE - len(before.header)
            if missing:
                steps.append(partial(setattr, before, "header", before.header + payload[:missing]))
            steps.append(partial(before.received.write, payload[missing:]))  # behind it, what is there is counted
            wanted = len(payload)
        steps.append(partial(setattr, before, "held", before.held + wanted))
        self._remove_for(key, wanted, {}, steps)

    def _remove_for(
        self, key: _Key, wanted: int, gone: dict[_Key, _Unfinished], steps: list[Callable[[], object]]
    ) -> None:
        """Abandon those in `gone`, and the oldest others if `wanted` more bytes for this one are more than may be."""
        held = self._bytes + wanted - sum(one.held for one in gone.values())
        if held > self._max_bytes:
            for other, unfinished in self._all():
                if held > self._max_bytes and other != key and other not in gone:
                    gone[other] = unfinished
                    held -= unfinished.held
        self._remove(gone, steps, abandoned=len(gone), wanted=wanted)

    def _remove(
        self, gone: dict[_Key, _Unfinished], steps: list[Callable[[], object]], *, abandoned: int, wanted: int = 0
    ) -> None:
        """Forget these messages, and hold `wanted` more bytes."""
        held = self._bytes + wanted - sum(one.held for one in gone.values())
        steps += [partial(self.unfinished.pop, one) for one in gone]
        if held != self._bytes:
            steps.append(partial(setattr, self, "_bytes", held))
        if abandoned:
            steps.append(partial(setattr, self, "_abandoned", self._abandoned + abandoned))

    def expire(self, now: float, steps: list[Callable[[], object]]) -> None:
        """Abandon the messages whose last fragment is older than the timeout.  `steps` is what it is for add()."""
        gone = {key: one for key, one in self._all() if one.deadline < now}
        self._remove(gone, steps, abandoned=len(gone))

    def _all(self) -> tuple[tuple[_Key, _Unfinished], ...]:
        """The unfinished messages; none if a signal's handler has changed them meanwhile, as nobody needs them then."""
        try:
            return tuple(self.unfinished.items())
        except RuntimeError:
            return ()


def _join(unfinished: _Unfinished, last: memoryview) -> tuple[bytes, bytes]:
    """Header and payload of a message, of which `last` is the last part.  Raises MemoryError if some of it is lost.

    Nothing is changed, and another call returns the same, whatever has been written behind the last part before.
    """
    received = unfinished.received
    if received is None or unfinished.is_lost:
        raise MemoryError
    missing = HEADER_SIZE - len(unfinished.header)
    received.seek(unfinished.length - len(unfinished.header))
    received.write(last[missing:])
    return unfinished.header + last[:missing], received.getvalue()
