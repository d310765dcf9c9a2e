# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The packets between a process and its node's ctdbd: messages, controls and their replies.

A packet begins with eight u32 in native order: length (of the whole packet), magic, version, generation, operation,
destination node, source node, request id.  What follows depends on the operation:

    REQ_MESSAGE     u64 srvid, u32 length, data
    REQ_CONTROL     u32 opcode, u32 unused, u64 srvid, u32 client id, u32 flags, u32 length, data
    REPLY_CONTROL   i32 status, u32 length, u32 length of the error text, data, error text

A srvid says who on a node is meant: a process registers its own ones, and ctdbd gives it what comes for them.

Rule 1.  Every length and count is checked against the bytes that are there before anything is made of it.  A packet's
memory grows with what has come, and not with what it announces.
Rule 2.  A packet may be longer than its fields say, since ctdbd rounds its length up to 8: the fields count.
Rule 3.  A packet that is too long for this process is read past and counted.  One whose head is wrong ends the
connection: nobody knows where the next one begins.

Source: ctdb's packets, observed between the programs of Debian's ctdb 4.17 (docs/formats.md has examples).
"""

from __future__ import annotations

import enum
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from msgd.errors import MalformedMessage

_HEAD = struct.Struct("=8I")
_MESSAGE = struct.Struct("=QI")
_CONTROL = struct.Struct("=IIQIII")
_REPLY = struct.Struct("=iII")
_NODE = struct.Struct("=II28s")
_COUNT = struct.Struct("=I")
_PID_SRVID = struct.Struct("=iQ")

_MAGIC = 0x43544442
_VERSION = 1
_REQ_MESSAGE, _REQ_CONTROL, _REPLY_CONTROL = 5, 7, 8
_NO_REPLY = 1
_AF_INET, _AF_INET6 = 2, 10

MESSAGE_OVERHEAD: Final = _HEAD.size + _MESSAGE.size
"""The bytes of a REQ_MESSAGE before its data."""

_CONTROL_OVERHEAD = _HEAD.size + _CONTROL.size
_REPLY_OVERHEAD = _HEAD.size + _REPLY.size
_ROUNDING = 7

CURRENT_NODE: Final = 0xF0000001
"""As a destination: the node of the ctdbd that is asked."""

SRVID_BROADCAST: Final = 0xFE00000000000002
"""The srvid for which every process of Samba's is registered: one packet to it reaches all of a node."""

SRVID_PUBLICATIONS: Final = int.from_bytes(b"msgdpubl", "big")
"""The srvid for which msgd's subscribers to topics are registered: a publication reaches them, and nobody else."""

SRVID_HUBS: Final = int.from_bytes(b"msgdhubs", "big")
"""The srvid for which every process of msgd's that publishes or subscribes is registered."""

SRVID_RECONFIGURE: Final = 0xF200000000000000
"""The srvid at which ctdbd announces that a recovery has ended: nodes may have come or gone."""


class Opcode(enum.IntEnum):
    """The controls that msgd sends.  GET_PNN asks for the number of a node: that is the status of its reply."""

    REGISTER_SRVID = 23
    DEREGISTER_SRVID = 24
    GET_PNN = 35
    GET_NODEMAP = 91
    CHECK_PID_SRVID = 151


class NodeFlag(enum.IntFlag):
    """What is wrong with a node, as the node map has it; no flag: nothing."""

    DISCONNECTED = 0x01
    UNHEALTHY = 0x02
    DISABLED = 0x04
    BANNED = 0x08
    DELETED = 0x10
    STOPPED = 0x20


_GONE = NodeFlag.DISCONNECTED | NodeFlag.DELETED


class Node(NamedTuple):
    """A node in the node map."""

    number: int
    flags: NodeFlag
    address: str

    @property
    def is_connected(self) -> bool:
        """Whether messages reach it; a node that is banned or stopped still takes them."""
        return not self.flags & _GONE

    @property
    def state(self) -> str:
        """Its flags in words; `ok` without any."""
        return " ".join(str(flag.name).lower() for flag in NodeFlag if flag & self.flags) or "ok"


class NodeMessage(NamedTuple):
    """A message that has come: for which srvid, and its data.  ctdb does not say where it comes from."""

    srvid: int
    data: bytes


class Reply(NamedTuple):
    """The answer to a control.  `error` is ctdbd's own text if it could not ask; then `status` is not 0."""

    request_id: int
    status: int
    data: bytes
    error: str


Packet = NodeMessage | Reply


def message_start(node: int, srvid: int, length: int) -> bytes:
    """What precedes the `length` bytes of a message's data on the wire.

    Raises MalformedMessage if the packet would be longer than its length can say.
    """
    try:
        head = _HEAD.pack(MESSAGE_OVERHEAD + length, _MAGIC, _VERSION, 0, _REQ_MESSAGE, node, 0, 0)
        return head + _MESSAGE.pack(srvid, length)
    except struct.error as error:
        raise MalformedMessage(f"{length} bytes for srvid {srvid:#x} at node {node}: {error}") from None


def pack_control(
    request_id: int, opcode: Opcode, data: bytes = b"", *, node: int = CURRENT_NODE, srvid: int = 0
) -> bytes:
    """A control, to which ctdbd will reply with the same request id."""
    length = _CONTROL_OVERHEAD + len(data)
    head = _HEAD.pack(length, _MAGIC, _VERSION, 0, _REQ_CONTROL, node, 0, request_id)
    return head + _CONTROL.pack(opcode, 0, srvid, 0, 0, len(data)) + data


def pack_pid_srvid(pid: int, srvid: int) -> bytes:
    """The data of CHECK_PID_SRVID; the status of its reply is 0 if process `pid` has registered the srvid."""
    return _PID_SRVID.pack(pid, srvid)


def unpack_nodes(data: bytes) -> tuple[Node, ...]:
    """The node map: the data of the reply to GET_NODEMAP.  Raises MalformedMessage."""
    if len(data) < _COUNT.size:
        raise MalformedMessage(f"a node map of {len(data)} bytes has no count")
    (count,) = _COUNT.unpack_from(data)
    there, rest = divmod(len(data) - _COUNT.size, _NODE.size)
    if count != there or rest:
        raise MalformedMessage(f"a node map that announces {count} nodes has {len(data)} bytes")
    return tuple(
        Node(number, NodeFlag(flags), _address(packed))
        for number, flags, packed in _NODE.iter_unpack(data[_COUNT.size :])
    )


def _address(packed: bytes) -> str:
    """The address in a sockaddr_in or sockaddr_in6."""
    (family,) = struct.unpack_from("=H", packed)
    if family == _AF_INET:
        return str(IPv4Address(packed[4:8]))
    if family == _AF_INET6:
        return str(IPv6Address(packed[8:24]))
    return "?"


class PacketReader:
    """Cuts the bytes from ctdbd into packets.  `longest`: the most data that a message may have."""

    def __init__(self, longest: int) -> None:
        self._longest = MESSAGE_OVERHEAD + longest + _ROUNDING
        self._partial = bytearray()
        self._to_skip = 0
        self.skipped = 0
        """Packets that were too long, or of an operation that is not for us."""

    @property
    def held(self) -> int:
        """The bytes of an unfinished packet."""
        return len(self._partial)

    def feed(self, data: bytes) -> list[Packet]:
        """The packets that these bytes complete, in order.

        Raises MalformedMessage if a packet's head or fields are wrong; the connection is then of no more use.
        """
        if self._to_skip:
            passed = min(self._to_skip, len(data))
            self._to_skip -= passed
            data = data[passed:]
        self._partial += data
        packets: list[Packet] = []
        begin, buffer = 0, self._partial
        while len(buffer) - begin >= _HEAD.size:
            length, magic, version, _, operation, _, _, request_id = _HEAD.unpack_from(buffer, begin)
            if magic != _MAGIC or version != _VERSION or length < _HEAD.size:
                raise MalformedMessage(f"a packet of {length} bytes has magic {magic:#x} and version {version}")
            if length > self._longest:
                self.skipped += 1
                self._to_skip = max(0, length - (len(buffer) - begin))
                begin = min(begin + length, len(buffer))
                continue
            end = begin + length
            if end > len(buffer):
                break
            if operation == _REQ_MESSAGE:
                packets.append(_message(buffer, begin, end))
            elif operation == _REPLY_CONTROL:
                packets.append(_reply(buffer, begin, end, request_id))
            else:
                self.skipped += 1
            begin = end
        del buffer[:begin]
        return packets


def _message(buffer: bytearray, begin: int, end: int) -> NodeMessage:
    data = begin + MESSAGE_OVERHEAD
    if data > end:
        raise MalformedMessage(f"a message of {end - begin} bytes")
    srvid, length = _MESSAGE.unpack_from(buffer, begin + _HEAD.size)
    if length > end - data:
        raise MalformedMessage(f"a message of {end - begin} bytes announces {length} bytes of data")
    return NodeMessage(srvid, bytes(memoryview(buffer)[data : data + length]))


def _reply(buffer: bytearray, begin: int, end: int, request_id: int) -> Reply:
    data = begin + _REPLY_OVERHEAD
    if data > end:
        raise MalformedMessage(f"a reply of {end - begin} bytes")
    status, length, error_length = _REPLY.unpack_from(buffer, begin + _HEAD.size)
    if length + error_length > end - data:
        raise MalformedMessage(f"a reply of {end - begin} bytes announces {length} and {error_length} bytes")
    error = bytes(buffer[data + length : data + length + error_length]).rstrip(b"\0")
    return Reply(request_id, status, bytes(buffer[data : data + length]), error.decode(errors="replace"))
