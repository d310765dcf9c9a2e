# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What a monitored process and `msgcontrol monitor` tell each other (msgd's own; docs/formats.md).

The monitor listens on a SOCK_SEQPACKET socket, `msg.monitor.<pid>` in the lock directory, and asks with a message of
type MONITOR, whose data is a JSON object: the types, and the pids of senders and of receivers, that it wants to see.
The monitored process connects, and sends a packet for each message: time (f64, seconds since the epoch), the number of
messages that it could not tell of since the last packet (u32), whether it has received this one or sent it (u32), the
length of its data (u64), its header, and the first bytes of its data.  All numbers are little-endian.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from msgd.errors import MalformedMessage
from msgd.wire.header import HEADER_SIZE, MessageDecoder, pack_header
from msgd.wire.refusal import MONITOR
from msgd.wire.server_id import ServerID

SOCKET_PREFIX = "msg.monitor."
"""The name of the monitor's socket, before its pid."""

FIRST_BYTES = 256
"""How much of a message's data is told."""

PACKET_MAX = 1024
"""More than the longest packet has."""

_EVENT = struct.Struct("<dIIQ")
_decoder = MessageDecoder()


class Filter(NamedTuple):
    """Which messages a monitor wants to see; an empty field means all."""

    types: frozenset[int] = frozenset()
    sources: frozenset[int] = frozenset()
    destinations: frozenset[int] = frozenset()

    def wants(self, src: ServerID, dst: ServerID, message_type: int) -> bool:
        """Whether it wants this message.  It never wants those of type MONITOR."""
        return (
            (message_type in self.types if self.types else message_type != MONITOR)
            and (not self.sources or src.pid in self.sources)
            and (not self.destinations or dst.pid in self.destinations)
        )

    def pack(self) -> bytes:
        """The data of a MONITOR message."""
        import json  # slow to import, and only needed where somebody watches

        return json.dumps([sorted(one) for one in self]).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Filter:
        """Read the data of a MONITOR message.  Raises MalformedMessage."""
        import json

        try:
            types, sources, destinations = (frozenset(map(int, one)) for one in json.loads(data))
        except (ValueError, TypeError, RecursionError) as error:
            raise MalformedMessage(f"not a monitor's filter: {error}") from None
        return cls(types, sources, destinations)


class Event(NamedTuple):
    """One message, as a monitored process tells of it."""

    time: float
    dropped: int
    """Messages that the process could not tell of before this one."""
    is_received: bool
    type: int
    src: ServerID
    dst: ServerID
    length: int
    data: bytes
    """The first bytes of it."""

    def pack(self) -> bytes:
        """The packet."""
        head = _EVENT.pack(self.time, self.dropped, self.is_received, self.length)
        return head + pack_header(self.dst, self.src, self.type) + self.data[:FIRST_BYTES]

    @classmethod
    def unpack(cls, packet: bytes) -> Event:
        """Read a packet.  Raises MalformedMessage."""
        if len(packet) < _EVENT.size + HEADER_SIZE:
            raise MalformedMessage(f"{len(packet)} bytes are shorter than a monitor's packet")
        time, dropped, is_received, length = _EVENT.unpack_from(packet)
        message = _decoder.decode(packet, _EVENT.size)
        return cls(time, dropped, bool(is_received), message.type, message.src, message.dst, length, message.data)
