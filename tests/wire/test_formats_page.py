# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""docs/formats.md: each worked example is compared with what the code packs or writes.

An example is a fenced block whose info string is `hex` or `text` and an id.  A line of a `hex` block has pairs of hex
digits, then optionally ` * N` (the pairs stand N times), then optionally two blanks and a comment.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from msgd import Config, MessageClass, MessageType, ServerID
from msgd.presence import Presence
from msgd.presence.lock_text import describe, format_text
from msgd.presence.names.file import FileNames
from msgd.presence.pidfile import PidFile
from msgd.pubsub import PubSub
from msgd.wire.control import ProfileLevel, pack_int, pack_text
from msgd.wire.ctdb import Opcode, message_start, pack_control, pack_pid_srvid
from msgd.wire.dgram import LONG_DATAGRAM_MAX, WHOLE_COOKIE, pack_batch
from msgd.wire.gateway.replies import write_answer, write_event
from msgd.wire.gateway.requests import write_request
from msgd.wire.header import Message, pack_header
from msgd.wire.monitor import Event, Filter
from msgd.wire.pubsub import (
    Ack,
    Numbers,
    Outcome,
    pack_ack,
    pack_data,
    pack_members,
    pack_numbers,
    pack_publish,
)
from msgd.wire.refusal import Reason, pack_refusal
from msgd.wire.samba3_connections import connection_key, pack_connection
from msgd.wire.stream import Hello, pack_frame
from msgd.wire.tdb_record import (
    SPACE_CHANGING,
    SPACE_KEY,
    SPACE_SOUND,
    Continuation,
    pack_continuation,
    pack_message,
    pack_segment_start,
    queue_key,
    segment_key,
)
from tests.wire.joined import fragment

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
VECTORS = Path(__file__).parent / "vectors"

_BLOCK = re.compile(r"^```(hex|text) ([a-z0-9-]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEX_LINE = re.compile(r"([0-9a-f]{2}(?: [0-9a-f]{2})*)(?: \* (\d+))?(?:  .*)?")

DST = ServerID(4711, unique_id=0x1122334455667788)
SRC = ServerID(4712, task_id=3, unique_id=0x8877665544332211)
SMBD = ServerID(32740, unique_id=0)
SMBCONTROL = ServerID(32741, unique_id=0x2B9C9B4891ABA52E)
PING = MessageType.PING

_LONG = pack_header(DST, SRC, PING) + b"x" * 965
FRAGMENTS = list(fragment(_LONG, cookie=1, pid=SRC.pid, socket_number=9))
LONG_FRAGMENTS = list(fragment(_LONG + b"x" * 4000, cookie=2, pid=SRC.pid, socket_number=9, longest=LONG_DATAGRAM_MAX))


def _golden_ping() -> bytes:
    line = (VECTORS / "samba-4.17-smbcontrol-datagrams.jsonl").read_text().splitlines()[0]
    [[datagram, fds]] = json.loads(line)["datagrams"]
    assert fds == 0
    return bytes.fromhex(datagram)


PACKED: dict[str, bytes] = {
    "server-id": DST.pack(),
    "header": pack_header(DST, SRC, PING),
    "refusal": pack_refusal(Reason.NO_HANDLER, 0xF200),
    "publish": pack_publish(2, DST.unique_id, 5, b"prices.eur", *pack_data({"eur": 1.1})),
    "ack": pack_ack(Ack(Outcome.FAILED, 1, "ValueError: no")),
    "numbers": pack_numbers(Numbers(DST.unique_id, 1.5, {2: 5})),
    "members": pack_members([(DST.pid, DST.unique_id)]),
    "monitor-packet": Event(1767225601.0, 3, True, PING, SRC, DST, 2, b"hi").pack(),
    "dgram-whole": WHOLE_COOKIE + pack_header(DST, SRC, PING) + b"hi",
    "dgram-first-fragment": FRAGMENTS[0],
    "dgram-last-fragment": FRAGMENTS[1],
    "dgram-long-fragment": LONG_FRAGMENTS[1],
    "dgram-batch": pack_batch([pack_header(DST, SRC, PING) + data for data in (b"one", b"")]),
    "dgram-golden-ping": WHOLE_COOKIE + pack_header(SMBD, SMBCONTROL, PING),
    "stream-hello": Hello(unique_id=SRC.unique_id, number=1).pack(),
    "stream-frame": pack_frame(DST, SRC, PING, len(b"hi")) + b"hi",
    "stream-frame-with-descriptors": pack_frame(DST, SRC, PING, 0, fds=2),
    "control-profilelevel": pack_int(ProfileLevel.COUNT_AND_TIME),
    "control-text": pack_text("public"),
    "tdb-golden-ping": pack_message(ServerID(19433), ServerID(20113), PING, b"1234567890\0"),
    "tdb-with-ids": pack_message(DST, SRC, PING, b"hi"),
    "tdb-continued": pack_continuation(DST.pid, Continuation(SRC.pid, SRC.unique_id, number=7, slot=0)),
    "tdb-segment": pack_segment_start(DST.pid, SRC.pid, number=7),
    "tdb-queue-key": queue_key(DST.pid),
    "tdb-segment-key": segment_key(DST.pid, SRC.pid, SRC.unique_id, 0),
    "samba3-key": connection_key(DST.pid),
    "samba3-record": pack_connection(DST.pid, 0, 0, 1767225600, MessageClass.GENERAL | MessageClass.SMBD),
    "tdb-space-key": SPACE_KEY,
    "tdb-space-sound": SPACE_SOUND,
    "tdb-space-changing": SPACE_CHANGING,
    "ctdb-message": message_start(1, DST.pid, 54) + pack_header(DST._replace(vnn=1), SRC._replace(vnn=0), PING) + b"hi",
    "ctdb-check": pack_control(1, Opcode.CHECK_PID_SRVID, pack_pid_srvid(DST.pid, DST.unique_id), node=1),
}  # fmt: skip
"""The examples that the wire packs."""


def _lock_text(directory: Path) -> bytes:
    return format_text(
        DST.unique_id,
        describe(
            "dgram", MessageClass.GENERAL | MessageClass.SMBD, (0, 1, 2, 7), 1767225600.5, 65536, allows_monitor=True
        ),
    )


def _lock_words(directory: Path) -> bytes:
    """The shared words of a lock file whose first word is 7."""
    with closing(Presence(Config(lock_directory=str(directory)))) as presence:
        presence.share_words(7).release()
        return (directory / "msg.lock" / str(os.getpid())).read_bytes()[512:]


def _pid_file(directory: Path) -> bytes:
    with PidFile(str(directory), "msgd", {0, os.geteuid()}):
        return (directory / "msgd.pid").read_bytes().replace(b"%d" % os.getpid(), b"4711")


def _publishers_file(directory: Path) -> bytes:
    with PubSub(directory) as pubsub:
        pubsub.publish("a")
        pubsub.publish("a")
    value = (directory / "publishers").read_bytes()
    return value[:8] + DST.unique_id.to_bytes(8, sys.byteorder) + value[16:]


def _names_file(directory: Path) -> bytes:
    directory_fd = os.open(directory, os.O_RDONLY)
    try:
        names = FileNames(directory_fd, str(directory))
        names.add("frontend", DST)
        names.add("frontend", SRC)
        return (directory / "names").read_bytes()
    finally:
        os.close(directory_fd)


def _names_tdb(directory: Path) -> tuple[bytes, bytes]:
    """The key and the value of the one record in names.tdb."""
    tdb = pytest.importorskip("tdb")
    with closing(Presence(Config(lock_directory=str(directory)))) as presence:  # it has names.tdb open
        presence.add_name("frontend", DST)
        presence.add_name("frontend", SRC)
    database = tdb.Tdb(str(directory / "names.tdb"), 0, tdb.NOMMAP, os.O_RDONLY)
    [key] = database.keys()
    value: bytes = database.get(key)
    database.close()
    return key, value


def _request(directory: Path) -> bytes:
    return write_request("send", 1, to=4700, type="PING", text="are you there?")


def _answer(directory: Path) -> bytes:
    return write_answer("send", 1, {"status": "sent"})


def _event(directory: Path) -> bytes:
    return write_event(Message(MessageType.PONG, ServerID(4700, unique_id=1234), DST, b"are you there?"))


WRITTEN: dict[str, Callable[[Path], bytes]] = {
    "lock-file": _lock_text,
    "lock-file-words": _lock_words,
    "pid-file": _pid_file,
    "publishers-file": _publishers_file,
    "names-file": _names_file,
    "names-tdb-key": lambda directory: _names_tdb(directory)[0],
    "names-tdb-value": lambda directory: _names_tdb(directory)[1],
    "gateway-request": _request,
    "gateway-answer": _answer,
    "gateway-event": _event,
    "monitor-filter": lambda directory: Filter(frozenset((PING,)), destinations=frozenset((DST.pid,))).pack() + b"\n",
}
"""The examples that come from files, or are lines of the gateway."""


def _unhex(block: str) -> bytes:
    value = b""
    for line in block.splitlines():
        match = _HEX_LINE.fullmatch(line)
        assert match is not None, f"not a line of hex digits: {line!r}"
        value += bytes.fromhex(match[1]) * int(match[2] or 1)
    return value


EXAMPLES = {name: _unhex(block) if kind == "hex" else block.encode() for kind, name, block in _BLOCK.findall(PAGE)}


def test_the_page_has_these_examples_and_no_others() -> None:
    assert sorted(name for _, name, _ in _BLOCK.findall(PAGE)) == sorted(PACKED.keys() | WRITTEN.keys())
    assert PAGE.count("```") == 2 * len(EXAMPLES), "a fenced block without an id is held by no test"


@pytest.mark.skipif(sys.byteorder != "little", reason="records of messages.tdb are in native byte order")
@pytest.mark.parametrize("name", PACKED)
def test_packed(name: str) -> None:
    assert EXAMPLES[name].hex(" ") == PACKED[name].hex(" ")


@pytest.mark.parametrize("name", WRITTEN)
def test_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["worker.py"])
    assert EXAMPLES[name] == WRITTEN[name](tmp_path)


def test_golden_ping_is_what_samba_sent() -> None:
    assert EXAMPLES["dgram-golden-ping"] == _golden_ping()


@pytest.mark.parametrize("vector", sorted(VECTORS.iterdir()), ids=lambda path: path.name)
def test_names_each_golden_vector(vector: Path) -> None:
    assert f"tests/wire/vectors/{vector.name}" in PAGE


@pytest.mark.parametrize("message_type", [one for one in MessageType if one < 0x100], ids=lambda one: one.name)
def test_table_of_general_types(message_type: MessageType) -> None:
    assert re.search(rf"^\| {message_type.value} \| `{message_type.name}` \|", PAGE, re.MULTILINE)
