# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The messages that wait in a sender for one destination that does not read: bounded, in order, never silently lost."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from msgd.drops import Drops
from msgd.errors import QueueFull
from msgd.wire.message_types import type_name
from msgd.wire.server_id import ServerID


class Outgoing(NamedTuple):
    """One queued message: what the log needs to name it, its bytes on the wire, and descriptors of our own.

    `start` stands before the message on the wire; it is apart where a message is too long to be copied behind it.
    """

    dst: ServerID
    type: int
    message: bytes
    fds: tuple[int, ...] = ()
    start: bytes = b""

    @property
    def size(self) -> int:
        """Its bytes on the wire."""
        return len(self.start) + len(self.message)

    @property
    def about_it(self) -> dict[str, object]:
        """The journal's fields about it."""
        return {"PEER_PID": self.dst.pid, "MESSAGE_TYPE": type_name(self.type)}

    def close_fds(self) -> None:
        """Close the duplicated descriptors that ride with the message."""
        for fd in self.fds:
            os.close(fd)


def _duplicate(fds: Collection[int]) -> tuple[int, ...]:
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except OSError:
        for copy in copies:
            os.close(copy)
        raise
    return tuple(copies)


class OutQueue:
    """The messages waiting for one destination, bounded in number and bytes (first in, first out)."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._messages: deque[Outgoing] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def head(self) -> Outgoing:
        """The message to send next."""
        return self._messages[0]

    def has_room(self, length: int) -> bool:
        """Whether a message of `length` bytes may be added; into an empty queue any message may."""
        if not self._messages:
            return True
        return len(self._messages) < self._max_messages and self.bytes + length <= self._max_bytes

    def append(
        self, dst: ServerID, message_type: int, message: bytes, fds: Collection[int], start: bytes = b""
    ) -> None:
        """Queue a message, duplicating its descriptors; QueueFull past the bound."""
        size = len(start) + len(message)
        if not self.has_room(size):
            raise QueueFull(
                f"pid {dst.pid} does not read: {len(self._messages)} messages ({self.bytes} bytes) wait for it,"
                f" the bound is {self._max_messages} messages and {self._max_bytes} bytes"
            )
        self._messages.append(Outgoing(dst, message_type, message, _duplicate(fds), start))
        self.bytes += size

    def holds(self, message: bytes, start: bytes = b"") -> bool:
        """Whether an identical message is waiting."""
        return any(one.message == message and one.start == start and not one.fds for one in self._messages)

    def pop(self) -> None:
        """Remove the head: it has been sent."""
        outgoing = self._messages.popleft()
        self.bytes -= outgoing.size
        outgoing.close_fds()

    def give_up(self, drops: Drops, reason: str) -> int:
        """Drop everything, counting and logging it; the number of messages."""
        number = len(self._messages)
        if number:
            head = self.head
            drops(
                reason, f"to {head.dst}, first of them of type {type_name(head.type)}", number, about_it=head.about_it
            )
        self.discard()
        return number

    def discard(self) -> None:
        """Forget everything: the queue is a forked child's copy, or given up already."""
        while self._messages:
            self.pop()
