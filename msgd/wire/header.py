# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The message header, and the message as a handler receives it.

The header has 52 bytes, little-endian: destination ServerID (24 bytes), source ServerID (24 bytes), u32 message type.
The payload follows; the transport says where it ends.

Source: Samba's message_hdr, observed in the golden datagrams (tests/wire/vectors).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from msgd.errors import MalformedMessage
from msgd.native import native
from msgd.wire.server_id import SERVER_ID, ServerID

HEADER = struct.Struct("<24s24sI")
HEADER_SIZE = HEADER.size

MAX_FDS = 127
"""The largest number of file descriptors in one message.  Samba's receiver accepts no more."""


class Message(NamedTuple):
    """One message as a handler receives it.

    The descriptors in `fds` are open while the handler runs, and are closed when it returns, unless it has called
    take_fds().
    """

    type: int
    src: ServerID
    dst: ServerID
    data: bytes
    fds: tuple[int, ...] = ()

    def take_fds(self) -> tuple[int, ...]:
        """Take the descriptors over: from now on the caller closes them.  Returns () if they have been taken before."""
        take = getattr(self.fds, "take", None)
        return self.fds if take is None else take()


new_message = tuple.__new__
"""new_message(Message, (type, src, dst, data, fds)): what Message(...) does, in half the time."""


def pack_header(dst: ServerID, src: ServerID, message_type: int) -> bytes:
    """Pack the 52 bytes before the payload.  Raises ValueError if a field does not fit."""
    try:
        return HEADER.pack(SERVER_ID.pack(*dst), SERVER_ID.pack(*src), message_type)
    except struct.error:
        dst.check()
        src.check()
        raise ValueError(f"message type {message_type} does not fit 32 bits") from None


class MessageDecoder:
    """Turns header and payload into a Message.

    A process mostly hears from the same few peers, so the ServerIDs of the bytes seen so far are cached.  The cache is
    emptied when it is full: this bounds the memory that a peer can fill with invented addresses.
    """

    _KNOWN_MAX = 1024

    def __init__(self) -> None:
        self._known: dict[bytes, ServerID] = {}
        self.addresses = None if native is None else native.Addresses(Message, ServerID)
        """The compiled twin of this object; None without it."""

    def decode(self, data: bytes, offset: int = 0, fds: tuple[int, ...] = ()) -> Message:
        """The message that starts at `offset` of `data`.  Raises MalformedMessage if the header is incomplete."""
        body = offset + HEADER_SIZE
        if len(data) < body:
            raise MalformedMessage(f"{len(data) - offset} bytes are shorter than the {HEADER_SIZE}-byte header")
        dst, src, message_type = HEADER.unpack_from(data, offset)
        known = self._known
        if src not in known or dst not in known:
            if len(known) >= self._KNOWN_MAX:
                known.clear()
            known[src] = ServerID.unpack(src)
            known[dst] = ServerID.unpack(dst)
        return new_message(Message, (message_type, known[src], known[dst], data[body:], fds))
