# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The golden vectors: datagrams recorded from Samba 4.17's smbcontrol are decoded, and encoded again byte for byte.

vectors/samba-4.17-smbcontrol-datagrams.jsonl has for each command the datagrams (hex, number of descriptors), their
sender and their receiver.  vectors/message_types.tsv has the numbers of all message types.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import NamedTuple

import pytest

from msgd import MessageType, ServerID
from msgd.wire.dgram import FRAGMENT, FRAGMENT_PAYLOAD_MAX, WHOLE_COOKIE, WHOLE_MAX, Reassembler
from msgd.wire.header import MessageDecoder, pack_header
from msgd.wire.message_types import TMP_BASE, type_name
from tests.wire.joined import add, fragment

VECTORS = Path(__file__).parent / "vectors"


class Capture(NamedTuple):
    command: str
    dst: ServerID
    src_pid: int
    datagrams: list[bytes]
    fds: list[int]

    @property
    def words(self) -> str:
        """The command without `smbcontrol <pid>` and without long arguments."""
        return " ".join(word[:20] for word in self.command.split()[2:])


def _captures() -> list[Capture]:
    captures = []
    for line in (VECTORS / "samba-4.17-smbcontrol-datagrams.jsonl").read_text().splitlines():
        one = json.loads(line)
        datagrams, fds = zip(*one["datagrams"], strict=True)
        dst = ServerID(one["dst_pid"], unique_id=0)
        captures.append(
            Capture(one["cmd"], dst, one["src_pid"], [bytes.fromhex(datagram) for datagram in datagrams], list(fds))
        )
    return captures


CAPTURES = _captures()

PAYLOADS = {
    "ping": (MessageType.PING, b""),
    "debug smb:10": (MessageType.DEBUG, b"smb:10\0"),
    "debuglevel": (MessageType.REQ_DEBUGLEVEL, b""),
    "profile on": (MessageType.PROFILE, b"\2\0\0\0"),
    "profilelevel": (MessageType.REQ_PROFILELEVEL, b""),
    "close-share share": (MessageType.SMB_FORCE_TDIS, b"share\0"),
    "kill-client-ip 10.0.0.1": (MessageType.SMB_KILL_CLIENT_IP, b"10.0.0.1\0"),
    "reload-config": (MessageType.SMB_CONF_UPDATED, b""),
    "pool-usage": (MessageType.REQ_POOL_USAGE, b""),
    "ringbuf-log": (MessageType.REQ_RINGBUF_LOG, b""),
    "num-children": (MessageType.SMB_TELL_NUM_CHILDREN, b""),
    "close-share xxxxxxxxxxxxxxxxxxxx": (MessageType.SMB_FORCE_TDIS, b"x" * 2500 + b"\0"),
    "shutdown": (MessageType.SHUTDOWN, b""),
    "onlinestatus": (MessageType.WINBIND_ONLINESTATUS, b""),
    "dump-domain-list": (MessageType.WINBIND_DUMP_DOMAIN_LIST, b""),
}
"""Type and payload of each command, except validate-cache, whose payload is the sender's server id."""


def join(capture: Capture) -> bytes:
    """The header and payload of a capture."""
    if capture.datagrams[0].startswith(WHOLE_COOKIE):
        [datagram] = capture.datagrams
        return datagram[len(WHOLE_COOKIE) :]
    reassembler = Reassembler(1 << 20, 1 << 20, 1, 60, io.BytesIO)
    *others, last = [add(reassembler, datagram, capture.src_pid, 0) for datagram in capture.datagrams]
    assert not any(others)
    assert last is not None
    return b"".join(last)


def test_all_captures_are_known() -> None:
    assert {capture.words for capture in CAPTURES} == {*PAYLOADS, "validate-cache"}


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda capture: capture.words.replace(" ", "-"))
def test_decode(capture: Capture) -> None:
    message = MessageDecoder().decode(join(capture))
    assert message.dst == capture.dst
    assert message.src == ServerID(capture.src_pid, unique_id=message.src.unique_id)
    assert message.src.unique_id != 0
    expected = PAYLOADS.get(capture.words) or (MessageType.WINBIND_VALIDATE_CACHE, message.src.pack())
    assert (message.type, message.data) == expected
    assert capture.fds == [int(capture.words == "pool-usage")] * len(capture.fds)


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda capture: capture.words.replace(" ", "-"))
def test_encode(capture: Capture) -> None:
    """msgd encodes the same message to the same bytes."""
    unique_id = MessageDecoder().decode(join(capture)).src.unique_id
    src = ServerID(capture.src_pid, unique_id=unique_id)
    message_type, payload = PAYLOADS.get(capture.words) or (MessageType.WINBIND_VALIDATE_CACHE, src.pack())
    message = pack_header(capture.dst, src, message_type) + payload
    if len(message) <= WHOLE_MAX:
        encoded = [WHOLE_COOKIE + message]
    else:
        cookie, _, pid, socket_number = FRAGMENT.unpack_from(capture.datagrams[0])
        assert pid == capture.src_pid
        encoded = list(fragment(message, cookie, pid, socket_number))
    assert encoded == capture.datagrams


def test_sizes() -> None:
    """The limits that wire/dgram.py states."""
    assert (WHOLE_MAX, FRAGMENT_PAYLOAD_MAX) == (1016, 1000)
    assert [len(datagram) for datagram in next(one for one in CAPTURES if len(one.datagrams) > 1).datagrams] == [
        1024,
        1024,
        24 + 52 + 2501 - 2000,
    ]


def _types(*numberings: str) -> dict[str, int]:
    lines = (VECTORS / "message_types.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return {name.removeprefix("MSG_"): int(value) for numbering, name, value in rows if numbering in numberings}


def test_message_types() -> None:
    """MessageType has all numbers of today's Samba, and no others."""
    assert {one.name: one.value for one in MessageType} | {"TMP_BASE": TMP_BASE} == _types(
        "samba4", "samba4-newer-than-4.17"
    )


def test_general_types_are_the_same_in_samba_3() -> None:
    then = _types("samba3.0")
    general = {name: value for name, value in then.items() if value < 256}
    assert general
    assert general.items() <= {one.name: one.value for one in MessageType}.items()


def test_type_name() -> None:
    assert type_name(2) == "PING"
    assert type_name(MessageType.PONG) == "PONG"
    assert type_name(0xF123) == "0xf123"
