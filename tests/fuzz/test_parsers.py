# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Any bytes at each parser: only the errors that it documents come out, and what it keeps is bounded.

Each target is what a stranger, a damaged file or an administrator can hand to a parser.  It runs for one second here;
`make fuzz` gives each MSGD_FUZZ_SECONDS.  The gateway's lines have a file of their own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from msgd import ConfigError, MalformedMessage, ServerID
from msgd.config.reader import read
from msgd.presence.lock_text import TEXT_MAX, format_text, parse_text
from msgd.wire.ctdb import Opcode as CtdbOpcode
from msgd.wire.ctdb import PacketReader, message_start, pack_control, unpack_nodes
from msgd.wire.dgram import BATCH_COOKIE, FRAGMENT, Reassembler, pack_batch, split_batch
from msgd.wire.header import HEADER_SIZE, MessageDecoder, pack_header
from msgd.wire.message_types import type_number
from msgd.wire.monitor import Event, Filter
from msgd.wire.refusal import unpack_refusal
from msgd.wire.samba3_connections import unpack_connection
from msgd.wire.server_id import ANY_UNIQUE_ID
from msgd.wire.stream import HELLO_SIZE, FrameReader, Hello, pack_frame
from msgd.wire.tdb_record import (
    RecordDecoder,
    count_messages,
    holds,
    key_pid,
    key_source_pid,
    pack_message,
    segment_number,
)
from msgd.wire.tdb_space import has_sound_head, is_cut_off, readable_records, rebuilt_free_list
from tests.wire.frames import feed
from tests.wire.joined import add, expire, fragment
from tests.wire.strategies import server_ids, uint32

SECONDS = float(os.environ.get("MSGD_FUZZ_SECONDS", "1"))

SRC, DST = ServerID(5, 1, unique_id=77), ServerID(6, 2, unique_id=88)

GUIDED_FROM = 10.0
"""From so many seconds on atheris, which coverage guides, takes hypothesis's place, where it is installed."""

_BATCH = 200
"""Examples between two looks at the clock."""

_TOTAL_MAX = 5000
_KEPT_MAX = 20_000


def spoilt(sound: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Sound bytes with some of them changed, cut out or put in, and bytes of any kind."""

    def spoil(whole: bytes, at: int, cut: int, put_in: bytes) -> bytes:
        at %= len(whole) + 1
        return whole[:at] + put_in + whole[at + cut :]

    return st.binary(max_size=3000) | st.builds(
        spoil, sound, st.integers(0, 4000), st.integers(0, 40), st.binary(max_size=40)
    )


def for_a_while(strategy: st.SearchStrategy[object], target: Callable[..., None]) -> None:
    """Run the target on new examples of the strategy until its time is up; a failure is reduced and shown."""
    began = time.monotonic()
    for number in count():

        @seed(number)
        @settings(
            max_examples=_BATCH,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def batch(example: object) -> None:
            target(example)

        batch()
        if time.monotonic() - began > SECONDS:
            return


headers = st.builds(pack_header, server_ids, server_ids, uint32)
payloads = st.binary(max_size=2500)
texts = st.builds(format_text, st.integers(0, 2**64 - 1), st.just(("type dgram", "classes GENERAL", "since 5")))
frames = st.builds(
    lambda dst, data, fds: pack_frame(dst, SRC, 2, len(data), fds) + data, server_ids, payloads, st.integers(0, 3)
)
records = st.lists(
    st.builds(pack_message, server_ids, server_ids, st.integers(0, 2**31 - 1), payloads), max_size=4
).map(b"".join)
ctdb_packets = st.builds(lambda data: message_start(1, 5, len(data)) + data, payloads) | st.builds(
    lambda data: pack_control(1, CtdbOpcode.GET_NODEMAP, data), payloads
)


def header(data: bytes) -> None:
    try:
        message = MessageDecoder().decode(data)
    except MalformedMessage:
        assert len(data) < HEADER_SIZE
    else:
        assert message.data == data[HEADER_SIZE:]


def batch(data: bytes) -> None:
    try:
        messages = split_batch(data)
    except MalformedMessage:
        return
    assert pack_batch(messages)[len(BATCH_COOKIE) :] == data[len(BATCH_COOKIE) :]


def datagrams(received: list[bytes]) -> None:
    reassembler = Reassembler(_TOTAL_MAX, _KEPT_MAX, 4, 60.0, io.BytesIO)
    for now, data in enumerate(received):
        try:
            whole = add(reassembler, data, None, now)
        except MalformedMessage:
            continue
        if whole is not None:
            header, payload = whole
            assert len(header) == HEADER_SIZE
            assert len(header) + len(payload) <= _TOTAL_MAX
        assert sum(one.held for one in reassembler.unfinished.values()) <= _KEPT_MAX
    expire(reassembler, 1e9)
    assert not reassembler
    assert reassembler._bytes == 0


def stream(chunks: list[bytes]) -> None:
    reader = FrameReader(MessageDecoder(), _TOTAL_MAX, SRC.pid)
    try:
        for chunk in chunks:
            for message in feed(reader, chunk, [900], complete=False):
                assert message.src.pid == SRC.pid
                assert len(message.data) <= _TOTAL_MAX
            assert len(reader._partial) <= len(chunk) + _TOTAL_MAX + 100
    except MalformedMessage:
        pass


def hello(data: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        assert Hello.unpack(data[:HELLO_SIZE].ljust(HELLO_SIZE, b"\0")).pack()[:4] == b"msgd"


def tdb_value(value: bytes) -> None:
    messages, specials = RecordDecoder(DST.pid, ServerID).decode(value)
    assert sum(len(message.data) for message in messages) <= len(value)
    assert len(messages) + len(specials) <= len(value) // 24 + 1
    assert count_messages(value) <= len(value) // 24
    holds(value, value[:40])
    segment_number(value)


def tdb_key(key: bytes) -> None:
    for pid in (key_pid(key), key_source_pid(key)):
        assert pid is None or pid >= 0


def tdb_space(image: bytes) -> None:
    """The writes stay within the file, whatever its chains say."""

    def pread(size: int, place: int) -> bytes:
        return image[max(place, 0) : max(place, 0) + max(size, 0)]

    has_sound_head(pread, len(image))
    is_cut_off(pread, len(image))
    records, _ = readable_records(pread, len(image))
    assert sum(map(len, records.values())) <= len(image)
    for write in rebuilt_free_list(pread, len(image)) or ():
        assert 0 <= write.place <= len(image) - len(write.data)


def lock_text(text: bytes) -> None:
    process = parse_text(4711, text[:TEXT_MAX])
    if process is not None:
        assert 0 <= process.unique_id < 2**64
        assert (process.classes, process.messaging_type, process.since, process.command) is not None
        process.is_addressed_by(ServerID(4711, unique_id=min(ANY_UNIQUE_ID)))


def small_packets(data: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        unpack_refusal(data)
    with contextlib.suppress(MalformedMessage):
        Event.unpack(data)
    with contextlib.suppress(MalformedMessage):
        Filter.unpack(data)
    unpack_connection(data)


def ctdb(chunks: list[bytes]) -> None:
    reader = PacketReader(_TOTAL_MAX)
    try:
        for chunk in chunks:
            for packet in reader.feed(chunk):
                assert len(packet.data) <= _TOTAL_MAX + 100
            assert reader.held <= len(chunk) + _TOTAL_MAX + 100
    except MalformedMessage:
        pass


def ctdb_data(data: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        assert all(node.state and node.address for node in unpack_nodes(data))


def addresses(text: str) -> None:
    with contextlib.suppress(ValueError):
        written = str(ServerID.parse(text))
        assert str(ServerID.parse(written)) == written  # `5/0` is written as `5`: both are any process with that pid


def types(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= type_number(text) < 2**32


TARGETS: dict[str, tuple[st.SearchStrategy[object], Callable[..., None]]] = {
    "header": (spoilt(headers), header),
    "datagrams": (
        st.lists(
            spoilt(
                st.builds(
                    lambda data, cookie, start: next(fragment(data, cookie, 5, 3, start), b""),
                    st.binary(min_size=HEADER_SIZE, max_size=_TOTAL_MAX),
                    st.integers(1, 3),
                    st.sampled_from([0, 1000, 2000]),
                )
                | st.builds(FRAGMENT.pack, st.integers(1, 3), st.integers(0, 6000), st.just(5), st.integers(1, 3))
            ),
            max_size=12,
        ),
        datagrams,
    ),
    "batch": (spoilt(st.lists(st.binary(min_size=50, max_size=90), max_size=4).map(pack_batch)), batch),
    "stream": (st.lists(spoilt(frames), max_size=6), stream),
    "hello": (spoilt(st.just(Hello(77, 1).pack())), hello),
    "tdb_value": (spoilt(records), tdb_value),
    "tdb_key": (spoilt(st.just(b"PID/6\0") | st.just(b"PID/6/5/77/1\0")), tdb_key),
    "tdb_space": (st.binary(max_size=6000), tdb_space),
    "lock_text": (spoilt(texts), lock_text),
    "small_packets": (st.binary(max_size=20) | st.binary(min_size=570, max_size=580), small_packets),
    "ctdb": (st.lists(spoilt(ctdb_packets), max_size=6), ctdb),
    "ctdb_data": (spoilt(st.integers(0, 4).map(lambda n: n.to_bytes(4, "little") + bytes(36 * n))), ctdb_data),
    "addresses": (st.text(max_size=40) | st.from_regex(r"[0-9:./-]{1,30}"), addresses),
    "types": (st.text(max_size=20) | st.from_regex(r"(0x)?[0-9a-fA-F]{1,12}"), types),
}


@pytest.mark.timeout(3 * SECONDS + 120)
@pytest.mark.parametrize("target", TARGETS)
def test_any_bytes(target: str) -> None:
    if SECONDS < GUIDED_FROM or importlib.util.find_spec("atheris") is None:
        for_a_while(*TARGETS[target])
        return
    command = [sys.executable, "-m", "tests.fuzz.guided", target, str(int(SECONDS))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(3 * SECONDS + 120)
def test_any_smb_conf(scratch: Path) -> None:
    """The reader finds settings and problems, or the file cannot be read; it includes itself at most."""
    path = scratch / "smb.conf"

    def target(text: bytes) -> None:
        path.write_bytes(text)
        try:
            reading = read(str(path))
        except ConfigError:
            return
        assert all(str(problem) for problem in reading.problems)

    lines = st.sampled_from(
        [
            b"[global]",
            b"lock directory = /x",
            b"include = " + bytes(path),
            b"log level = \\",
            b"; nothing",
            b"msgd:max clients = 5",
            b"[",
        ]
    )
    for_a_while(spoilt(st.lists(lines, max_size=8).map(b"\n".join)), target)
