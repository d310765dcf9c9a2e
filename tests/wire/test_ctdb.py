# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""ctdb's packets: those of Debian's ctdb 4.17 are read, ours are what its own tool sends, and no length is believed."""

from __future__ import annotations

import struct

import pytest

from msgd import MalformedMessage
from msgd.wire.ctdb import (
    MESSAGE_OVERHEAD,
    Node,
    NodeFlag,
    NodeMessage,
    Opcode,
    Packet,
    PacketReader,
    Reply,
    message_start,
    pack_control,
    pack_pid_srvid,
    unpack_nodes,
)

# As ctdbd of Debian's ctdb 4.17.12 sent them.
MESSAGE = bytes.fromhex(
    "38000000424454430100000094adf27705000000000000000100000000000000657200000000000005000000 68656c6c6f 00000000000000"
)
CHECKED = bytes.fromhex(
    "300000004244544301000000 8f4d0469 0800000000000000 01000000 3affff7f 00000000 00000000 00000000 00000000"
)
DISCONNECTED = struct.pack("=iII", -1, 0, 33) + b"ctdb_control to disconnected node"
NODES = bytes.fromhex(
    "03000000"
    "00000000 00000000 0200111b7f004d01" + 20 * "00" + ""
    "01000000 00000000 0200111b7f004d02" + 20 * "00" + ""
    "02000000 03000000 0200111b7f004d03" + 20 * "00"
)
# As the tool `ctdb` of that version sent it.
CHECK = bytes.fromhex(
    "4800000042445443010000000000000007000000 01000000 01000000 3affff7f"
    "97000000 00000000 0000000000000000 00000000 00000000 0c000000 39740000 9078563412000000"
)


def head(length: int, operation: int, magic: int = 0x43544442, version: int = 1) -> bytes:
    return struct.pack("=8I", length, magic, version, 0, operation, 0, 1, 9)


def read(data: bytes, chunk: int = 1 << 20, longest: int = 100) -> list[Packet]:
    reader = PacketReader(longest)
    return [packet for at in range(0, len(data), chunk) for packet in reader.feed(data[at : at + chunk])]


@pytest.mark.parametrize("chunk", [1, 7, 44, 1000])
def test_what_ctdbd_sends(chunk: int) -> None:
    refused = head(32 + len(DISCONNECTED) + 3, 8) + DISCONNECTED + b"\0" * 3
    assert read(MESSAGE + CHECKED + refused + MESSAGE, chunk) == [
        NodeMessage(0x7265, b"hello"),
        Reply(0x7FFFFF3A, 0, b"", ""),
        Reply(9, -1, b"", "ctdb_control to disconnected node"),
        NodeMessage(0x7265, b"hello"),
    ]


def test_a_control_is_what_ctdbs_own_tool_sends() -> None:
    ours = pack_control(0x7FFFFF3A, Opcode.CHECK_PID_SRVID, pack_pid_srvid(0x7439, 0x1234567890), node=1)
    assert ours[:24] == CHECK[:24]
    assert ours[28:] == CHECK[28:]  # the tool fills in the source node, which ctdbd overwrites


def test_a_message_is_read_as_it_was_packed() -> None:
    packed = message_start(3, 2**64 - 1, 2) + b"hi"
    assert len(packed) == MESSAGE_OVERHEAD + 2
    assert read(packed) == [NodeMessage(2**64 - 1, b"hi")]


def test_what_no_packet_can_say() -> None:
    for node, srvid, length in ((2**32, 1, 1), (1, 2**64, 1), (1, 1, 2**32), (-1, 1, 1)):
        with pytest.raises(MalformedMessage):
            message_start(node, srvid, length)


def test_node_map() -> None:
    nodes = unpack_nodes(NODES)
    assert nodes == (
        Node(0, NodeFlag(0), "127.0.77.1"),
        Node(1, NodeFlag(0), "127.0.77.2"),
        Node(2, NodeFlag.DISCONNECTED | NodeFlag.UNHEALTHY, "127.0.77.3"),
    )
    assert [(node.is_connected, node.state) for node in nodes] == [
        (True, "ok"),
        (True, "ok"),
        (False, "disconnected unhealthy"),
    ]
    six = struct.pack("=IIIHHI", 1, 0, 0x100, 10, 0, 0) + bytes(15) + b"\1" + bytes(4)
    [node] = unpack_nodes(six)
    assert (node.address, node.is_connected) == ("::1", True)
    assert unpack_nodes(six[:12] + b"\xff\xff" + six[14:])[0].address == "?"


@pytest.mark.parametrize("data", [b"", b"\0\0\0", NODES[:-1], NODES + b"\0", b"\xff\xff\xff\xff", b"\xff" * 40])
def test_lying_node_maps(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack_nodes(data)


@pytest.mark.parametrize(
    "data",
    [
        head(48, 5, magic=0x43544443),
        head(48, 5, version=2),
        head(31, 5),
        head(0, 5),
        head(36, 5) + b"\0" * 4,
        head(44, 5) + struct.pack("=QI", 1, 1),
        head(48, 5) + struct.pack("=QI", 1, 0xFFFFFFFF) + b"\0" * 4,
        head(40, 8) + b"\0" * 8,
        head(48, 8) + struct.pack("=iII", 0, 0, 5) + b"\0" * 4,
        head(48, 8) + struct.pack("=iII", 0, 0xFFFFFFFF, 1) + b"\0" * 4,
    ],
    ids=["magic", "version", "short", "nothing", "no-fields", "one-byte", "huge", "no-reply", "error", "both"],
)
def test_lying_packets(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read(data)


@pytest.mark.parametrize("chunk", [1, 50, 10_000])
def test_a_long_packet_is_read_past_and_never_kept(chunk: int) -> None:
    reader = PacketReader(100)
    long = head(5000, 5).ljust(5000, b"x")
    data = MESSAGE + long + head(40, 6) + b"\0" * 8 + MESSAGE
    packets: list[Packet] = []
    for at in range(0, len(data), chunk):
        packets += reader.feed(data[at : at + chunk])
        assert reader.held < 200
    assert packets == [NodeMessage(0x7265, b"hello")] * 2
    assert reader.skipped == 2
