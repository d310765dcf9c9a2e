# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A sender's queue for one destination that has no room.

Rule 1. First in, first out.
Rule 2. The queue is bounded in messages and in bytes; past the bound append() raises QueueFull.  An empty queue takes a
        message of any size, since otherwise a message larger than the bound could never be sent.
Rule 3. Descriptors are duplicated when their message is queued, so that the caller may close its own.
Rule 4. A message leaves the queue when it has been sent, or is given up, counted and logged.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from msgd.drops import Drops
from msgd.errors import QueueFull
from msgd.wire.message_types import type_name
from msgd.wire.server_id import ServerID


class QueuedMessage(NamedTuple):
    """One queued message: its bytes on the wire, our duplicates of its descriptors, and what the log says of it.

    `start` precedes `message` on the wire.  It is separate where copying a long message to join them would cost too
    much.
    """

    dst: ServerID
    type: int
    message: bytes
    fds: tuple[int, ...] = ()
    start: bytes = b""

    @property
    def size(self) -> int:
        """The number of its bytes on the wire."""
        return len(self.start) + len(self.message)

    @property
    def about_it(self) -> dict[str, object]:
        """The fields about the message for the journal."""
        return {"PEER_PID": self.dst.pid, "MESSAGE_TYPE": type_name(self.type)}

    def close_fds(self) -> None:
        """Close the duplicated descriptors."""
        for fd in self.fds:
            os.close(fd)


def _duplicate(fds: Collection[int]) -> tuple[int, ...]:
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except BaseException:
        for copy in copies:
            os.close(copy)
        raise
    return tuple(copies)


class OutQueue:
    """The messages that wait for one destination, at most `max_messages` of them and `max_bytes` in all."""

    __slots__ = ("_max_bytes", "_max_messages", "bytes", "messages")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self.messages: deque[QueuedMessage] = deque()
        """Oldest first.  Its truth costs less than that of this object, which send() asks for each message."""
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def head(self) -> QueuedMessage:
        """The message to send next."""
        return self.messages[0]

    def has_room(self, length: int) -> bool:
        """Whether a message of `length` bytes may be appended.  An empty queue has room for any message."""
        if not self.messages:
            return True
        return len(self.messages) < self._max_messages and self.bytes + length <= self._max_bytes

    def append(
        self, dst: ServerID, message_type: int, message: bytes, fds: Collection[int], start: bytes = b""
    ) -> None:
        """Queue a message, with duplicates of its descriptors.  Raises QueueFull past the bound, OSError from dup()."""
        size = len(start) + len(message)
        if not self.has_room(size):
            raise QueueFull(
                f"pid {dst.pid} does not read: {len(self.messages)} messages ({self.bytes} bytes) wait for it,"
                f" the bound is {self._max_messages} messages and {self._max_bytes} bytes"
            )
        self.messages.append(QueuedMessage(dst, message_type, message, _duplicate(fds), start))
        self.bytes += size

    def holds(self, message: bytes, start: bytes = b"") -> bool:
        """Whether an identical message is queued.  Messages with descriptors are never identical."""
        return any(one.message == message and one.start == start and not one.fds for one in self.messages)

    def pop(self) -> None:
        """Remove the head, which has been sent."""
        outgoing = self.messages.popleft()
        self.bytes -= outgoing.size
        outgoing.close_fds()

    def give_up(self, drops: Drops, reason: str) -> int:
        """Drop all messages, count and log them under `reason`, and return their number."""
        number = len(self.messages)
        if number:
            head = self.head
            drops(
                reason, f"to {head.dst}, first of them of type {type_name(head.type)}", number, about_it=head.about_it
            )
        self.discard()
        return number

    def discard(self) -> None:
        """Empty the queue without counting: it is a forked child's copy, or has been counted already."""
        while self.messages:
            self.pop()
