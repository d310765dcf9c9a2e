# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How msgcontrol monitor shows a message: as a line, as JSON, or in a pcap file."""

from __future__ import annotations

import contextlib
import json
import struct
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import BinaryIO

from msgd.errors import MalformedMessage, TransportError
from msgd.programs.debug_levels import read_text
from msgd.wire.header import HEADER_SIZE, pack_header
from msgd.wire.message_types import MessageType, type_name
from msgd.wire.monitor import FIRST_BYTES, Event
from msgd.wire.refusal import NOT_HANDLED, unpack_refusal
from msgd.wire.server_id import UNIQUE_ID_UNKNOWN, ServerID

LINKTYPE_USER0 = 147
_PCAP_HEADER = struct.Struct("<IHHiIII")
_PCAP_PACKET = struct.Struct("<IIII")
_PCAP_MAGIC = 0xA1B2C3D4
_SHOWN = 32
"""Bytes of data in a line."""

_NUMBER = struct.Struct("<I")


def _refusal(data: bytes) -> str:
    reason, message_type = unpack_refusal(data)
    return f"{reason.name} for {type_name(message_type)}"


_DECODERS: dict[int, Callable[[bytes], str]] = {
    MessageType.DEBUG: read_text,
    MessageType.DEBUGLEVEL: read_text,
    MessageType.SMB_NUM_CHILDREN: lambda data: str(*_NUMBER.unpack(data)),
    NOT_HANDLED: _refusal,
}


def decoded(event: Event) -> str | None:
    """What the data says; None if there is no decoder, or if the data is cut off or malformed."""
    decoder = _DECODERS.get(event.type)
    if decoder is None or event.length != len(event.data):
        return None
    try:
        return decoder(event.data)
    except (struct.error, MalformedMessage):
        return None


class Output(ABC):
    """Where messages are shown."""

    @abstractmethod
    def show(self, event: Event) -> None:
        """Show one message."""

    @abstractmethod
    def flush(self) -> None:
        """Let everything that was shown be seen."""


class _Lines(Output):
    """A line for each message, or a JSON object."""

    def __init__(self, line: Callable[[Event], str]) -> None:
        self._line = line

    def show(self, event: Event) -> None:
        sys.stdout.write(f"{self._line(event)}\n")

    def flush(self) -> None:
        sys.stdout.flush()


class _Pcap(Output):
    """A file of libpcap's format."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.write(_PCAP_HEADER.pack(_PCAP_MAGIC, 2, 4, 0, 0, HEADER_SIZE + FIRST_BYTES, LINKTYPE_USER0))

    def show(self, event: Event) -> None:
        packet = pack_header(event.dst, event.src, event.type) + event.data
        microseconds = int(event.time * 1_000_000)
        head = _PCAP_PACKET.pack(*divmod(microseconds, 1_000_000), len(packet), HEADER_SIZE + event.length)
        self._file.write(head + packet)

    def flush(self) -> None:
        self._file.flush()


@contextlib.contextmanager
def open_output(is_json: bool, pcap: str | None) -> Iterator[Output]:
    """The output that the options ask for.  Raises TransportError if the file cannot be written."""
    if pcap is None:
        yield _Lines(json_line if is_json else line)
    elif pcap == "-":
        yield _Pcap(sys.stdout.buffer)
    else:
        try:
            file = open(pcap, "wb")  # noqa: SIM115
        except OSError as error:
            raise TransportError(f"{pcap}: {error.strerror}") from error
        with file:
            yield _Pcap(file)


def line(event: Event) -> str:
    """Time, from, to, type, length, and what the data says or its first bytes."""
    seconds, fraction = divmod(event.time, 1)
    when = time.strftime("%H:%M:%S", time.localtime(seconds))
    route = f"{_short(event.src)} -> {_short(event.dst)}"
    head = f"{when}.{int(fraction * 1e6):06} {route} {type_name(event.type)} {event.length} bytes"
    text = decoded(event)
    if text is not None:
        return f"{head}: {text}"
    if not event.length:
        return head
    shown = event.data[:_SHOWN]
    more = " ..." if event.length > len(shown) else ""
    printable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in shown)
    return f"{head}: {shown.hex(' ')}{more} |{printable}|"


def _short(address: ServerID) -> str:
    return str(address._replace(unique_id=UNIQUE_ID_UNKNOWN))


def json_line(event: Event) -> str:
    """The same as JSON; `data` is hex, and `dropped` counts the messages before this one that came too fast."""
    text = decoded(event)
    return json.dumps(
        {
            "time": event.time,
            "from": str(event.src),
            "to": str(event.dst),
            "seen": "received" if event.is_received else "sent",
            "type": type_name(event.type),
            "number": event.type,
            "length": event.length,
            "data": event.data.hex(),
            "dropped": event.dropped,
        }
        | ({} if text is None else {"decoded": text})
    )
