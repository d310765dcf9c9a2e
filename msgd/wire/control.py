# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The data of Samba's control messages: texts, numbers, the mode and the level of profiling.

Texts end with a NUL.  Numbers are C's int, in the byte order of the machine: these messages do not leave it.  The
format was seen in Samba's smbcontrol and in its daemons (docs/formats.md).
"""

from __future__ import annotations

import enum
import struct

from msgd.errors import MalformedMessage

_INT = struct.Struct("=i")
_UNSIGNED = struct.Struct("=I")


class ProfileMode(enum.IntEnum):
    """The data of PROFILE: what to count from now on, or (FLUSH) to begin at zero."""

    OFF = 0
    COUNT = 1
    ON = 2
    FLUSH = 3


class ProfileLevel(enum.IntEnum):
    """The data of PROFILELEVEL: what is counted."""

    NOT_ENABLED = 0
    OFF = 1
    COUNT = 3
    COUNT_AND_TIME = 7


class Fault(enum.IntEnum):
    """The data of SMB_INJECT_FAULT: a signal, by its number on Linux, or INTERNAL for a panic."""

    HUP = 1
    BUS = 7
    SEGV = 11
    TERM = 15
    INTERNAL = -1


def pack_text(text: str) -> bytes:
    """Encode a text as Samba's handlers expect it: terminated by a NUL."""
    return text.encode("utf-8", "surrogateescape") + b"\0"


def unpack_text(data: bytes) -> str:
    """Decode the text in front of the first NUL.  Characters that would act on a terminal become `?`."""
    text = data.partition(b"\0")[0].decode("utf-8", "replace")
    return "".join(character if character.isprintable() or character in "\n\t" else "?" for character in text)


def pack_int(number: int) -> bytes:
    """Encode a C int."""
    return _INT.pack(number)


def pack_unsigned(number: int) -> bytes:
    """Encode a C unsigned int."""
    return _UNSIGNED.pack(number)


def unpack_int(data: bytes) -> int:
    """Decode a C int.  Raises MalformedMessage if the data has another length."""
    if len(data) != _INT.size:
        raise MalformedMessage(f"a number has {_INT.size} bytes, not {len(data)}")
    number: int = _INT.unpack(data)[0]
    return number
