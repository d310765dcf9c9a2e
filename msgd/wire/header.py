"""The message header and the message itself.

Header, 52 bytes, little-endian: destination ServerID (24), source ServerID (24), u32 message type.  The payload
follows and ends where the transport says the message ends.  (Samba's message_hdr; observed in the golden datagrams.)
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from msgd.errors import MalformedMessage
from msgd.wire.server_id import SERVER_ID, ServerID

HEADER = struct.Struct("<24s24sI")
HEADER_SIZE = HEADER.size

MAX_FDS = 127
"""File descriptors one message can carry; Samba's receiver takes no more."""


class Message(NamedTuple):
    """One message as a handler gets it.

    `fds` are open while the handler runs and closed when it returns; os.dup() what is to be kept.
    """

    type: int
    src: ServerID
    dst: ServerID
    data: bytes
    fds: tuple[int, ...] = ()


new_message = tuple.__new__
"""new_message(Message, (type, src, dst, data, fds)): half the time of Message(...), for the decoders."""


def pack_header(dst: ServerID, src: ServerID, message_type: int) -> bytes:
    """The 52 bytes that stand before the payload; ValueError if something does not fit them."""
    try:
        return HEADER.pack(SERVER_ID.pack(*dst), SERVER_ID.pack(*src), message_type)
    except struct.error:
        dst.check()
        src.check()
        raise ValueError(f"message type {message_type} does not fit 32 bits") from None


class MessageDecoder:
    """Turns header and payload into a Message.

    A process hears the same few peers over and over, so the ServerID of each 24 bytes seen is kept; the table is
    emptied when it is full, which bounds what peers with invented addresses can make it hold.
    """

    _KNOWN_MAX = 1024

    def __init__(self) -> None:
        self._known: dict[bytes, ServerID] = {}

    def decode(self, data: bytes, offset: int = 0, fds: tuple[int, ...] = ()) -> Message:
        """The message that starts at `offset` of `data`; MalformedMessage if the header is not whole."""
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
