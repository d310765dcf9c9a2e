# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""One connection to ctdbd: packets out, in order, and packets in.

Rule 1.  Nothing here blocks.  What ctdbd does not take now waits in this process, behind what waits already, and
flush() sends it.  The bound, in messages and bytes, is for whoever sends messages to keep; controls are few.
Rule 2.  A packet may leave in parts.  ctdbd throws an unfinished one away when the connection ends, so what is to be
repeated over another connection is repeated whole.
Rule 3.  An OSError, EOFError or MalformedMessage from any call means that the connection has ended.
"""

from __future__ import annotations

import itertools
import socket
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from msgd.drops import Drops
from msgd.linux import unix_socket
from msgd.wire.ctdb import Packet, PacketReader
from msgd.wire.message_types import type_name
from msgd.wire.server_id import ServerID

_RECEIVE = 1 << 16
_GATHERED = 64
"""Packets that one system call sends at most."""

_SHORT = 4096
"""Up to this size, joining a packet's two parts costs less than handing both to the kernel."""


class Waiting(NamedTuple):
    """A packet that waits: its bytes, and for whom the message in it is (None: it is a control)."""

    start: bytes
    data: bytes
    dst: ServerID | None
    type: int


class Connection:
    """A connection to the ctdbd that listens at `path`.

    `longest`: the most data that a message may have.  `max_messages` and `max_bytes`: how much may wait.
    Raises OSError: BlockingIOError if ctdbd's backlog is full.
    """

    def __init__(self, path: str, longest: int, max_messages: int = 1, max_bytes: int = 1) -> None:
        self.socket = unix_socket(socket.SOCK_STREAM)
        try:
            self.socket.setblocking(False)
            self.socket.connect(path)
        except BaseException:
            self.socket.close()
            raise
        self.reader = PacketReader(longest)
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self.waiting: deque[Waiting] = deque()
        self.messages = 0
        """Messages that wait; controls are not counted."""
        self.bytes = 0
        """The bytes of all that waits."""
        self._left = 0
        """The bytes of the first packet that ctdbd has taken already."""
        self._packets: deque[Packet] = deque()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.socket.fileno()

    def send(self, start: bytes, data: bytes = b"", dst: ServerID | None = None, message_type: int = 0) -> bool:
        """Send a packet, or let it wait.  Returns whether it has left."""
        if not self.waiting:
            size = len(start) + len(data)
            try:
                if size <= _SHORT:
                    sent = self.socket.send(start + data, socket.MSG_NOSIGNAL)
                else:
                    sent = self.socket.sendmsg((start, data), (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            if sent == size:
                return True
            self._left = sent
        self.waiting.append(Waiting(start, data, dst, message_type))
        self.messages += dst is not None
        self.bytes += len(start) + len(data)
        return False

    def flush(self) -> None:
        """Send what waits, as far as ctdbd takes it."""
        while self.waiting:
            parts = [memoryview(part) for one in itertools.islice(self.waiting, _GATHERED) for part in one[:2] if part]
            passed = self._left
            while passed >= len(parts[0]):
                passed -= len(parts.pop(0))
            parts[0] = parts[0][passed:]
            try:
                self._left += self.socket.sendmsg(parts, (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            while self.waiting and self._left >= (size := len(self.waiting[0].start) + len(self.waiting[0].data)):
                self._left -= size
                self.bytes -= size
                self.messages -= self.waiting.popleft().dst is not None

    def has_room(self, size: int) -> bool:
        """Whether a message of so many bytes may wait: any may if nothing does."""
        return not self.waiting or (self.messages < self._max_messages and self.bytes + size <= self._max_bytes)

    def describe(self) -> str:
        """What waits, and the bound, for a person."""
        return (
            f"{self.messages} messages ({self.bytes} bytes) wait for it, the bound is {self._max_messages} messages and"
            f" {self._max_bytes} bytes"
        )

    def holds(self, start: bytes, data: bytes) -> bool:
        """Whether an identical packet waits."""
        return any(one.data == data and one.start == start for one in self.waiting)

    def receive(self) -> Iterator[Packet]:
        """The packets that have come, those of one system call.  What the caller does not take is given next time.

        Raises BlockingIOError if nothing has come.
        """
        if not self._packets:
            received = self.socket.recv(_RECEIVE)
            if not received:
                raise EOFError("it has ended the connection")
            self._packets.extend(self.reader.feed(received))
        while self._packets:
            yield self._packets.popleft()

    def give_up(self, drops: Drops, reason: str) -> int:
        """Drop what waits, count and log the messages under `reason`, and return their number."""
        lost = [(one.dst, one.type) for one in self.waiting if one.dst is not None]
        if lost:
            dst, message_type = lost[0]
            about = {"PEER_PID": dst.pid, "MESSAGE_TYPE": type_name(message_type)}
            drops(reason, f"to {dst}, first of them of type {type_name(message_type)}", len(lost), about_it=about)
        self.waiting.clear()
        self.messages = self.bytes = 0
        return len(lost)

    def close(self) -> None:
        """Close the socket; what waits is the caller's to count."""
        self.socket.close()
