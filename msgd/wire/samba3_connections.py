# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The records of connections.tdb, in which processes of Samba 3.0 tell each other which broadcasts they listen to.

A process that listens has a record with the connection number -1.  Its key is i32 pid, i32 -1 and a name of 256 bytes,
which is empty.  Its value has 576 bytes, in native byte order:

    0    u32  0x280267
    4    i32  pid
    8    i32  connection number: -1
    12   u32  uid
    16   u32  gid
    20   256  service name, empty
    276  24   address, empty
    300  256  machine name, empty
    560  i64  when it started, in seconds since the epoch
    568  u32  the classes of broadcasts that it listens to
    572  4    unused

The classes are bits: 1 GENERAL, 2 SMBD, 4 NMBD, 8 and 16 PRINT.  Samba 3.0 has none for winbindd.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from msgd.wire.message_types import MessageClass

_KEY = struct.Struct("=ii256x")
_VALUE = struct.Struct("=IiiII256x24x256x4xqI4x")
_MAGIC = 0x280267
_PROCESS = -1
_BITS = {MessageClass.GENERAL: 0x1, MessageClass.SMBD: 0x2, MessageClass.NMBD: 0x4, MessageClass.PRINT: 0x18}


class Listener(NamedTuple):
    """A process and the classes of broadcasts that it listens to."""

    pid: int
    classes: MessageClass


def connection_key(pid: int) -> bytes:
    """The key of the record of a process."""
    return _KEY.pack(pid, _PROCESS)


def pack_connection(pid: int, uid: int, gid: int, since: int, classes: MessageClass) -> bytes:
    """The value of the record of a process."""
    bits = sum(bit for one, bit in _BITS.items() if one in classes)
    return _VALUE.pack(_MAGIC, pid, _PROCESS, uid, gid, since, bits)


def unpack_connection(value: bytes) -> Listener | None:
    """Who listens to what; None for any other record: that of a client's connection, or one that is not understood."""
    if len(value) != _VALUE.size:
        return None
    magic, pid, number, _, _, _, bits = _VALUE.unpack(value)
    if magic != _MAGIC or number != _PROCESS or pid <= 0:
        return None
    classes = MessageClass(0)
    for one, bit in _BITS.items():
        if bits & bit:
            classes |= one
    return Listener(pid, classes)
