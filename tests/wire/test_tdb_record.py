# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The records of messages.tdb: golden bytes, round trips, and any bytes at all."""

from __future__ import annotations

import resource
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from msgd import Message, ServerID
from msgd.errors import MalformedMessage
from msgd.wire.server_id import ANY_UNIQUE_ID, NONCLUSTER_VNN
from msgd.wire.tdb_record import (
    RECORD_TYPE_MAX,
    Continuation,
    RecordDecoder,
    SegmentStart,
    Special,
    count_messages,
    holds,
    key_pid,
    key_source_pid,
    pack_continuation,
    pack_message,
    pack_messages,
    pack_segment_start,
    queue_key,
    record_starts,
    segment_key,
    segment_number,
    split_by_source,
)
from tests.support.harness import Channel, Child

GOLDEN = bytes.fromhex("0100000002000000e94b0000914e00000b000000000000003132333435363738393000")
DST, SRC = 19433, 20113

u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)
pids = st.integers(1, 0x7FFFFFFF)
types = st.integers(0, RECORD_TYPE_MAX)
destinations = st.builds(lambda task, unique: ServerID(DST, task, NONCLUSTER_VNN, unique), u32, u64)
sources = st.builds(lambda pid, task, unique: ServerID(pid, task, NONCLUSTER_VNN, unique), pids, u32, u64)
messages = st.tuples(destinations, sources, types, st.binary(max_size=100))
continuations = st.builds(Continuation, pids, u64, u64, u64)


def source_of(pid: int) -> ServerID:
    """A source_of() that derives the unique id from the pid."""
    return ServerID(pid, unique_id=pid + 1000)


def decode(value: bytes) -> tuple[list[Message], list[Special]]:
    return RecordDecoder(DST, source_of).decode(value)


def test_golden_record() -> None:
    assert pack_message(ServerID(DST), ServerID(SRC, unique_id=77), 2, b"1234567890\0") == GOLDEN
    assert decode(GOLDEN) == ([Message(2, source_of(SRC), ServerID(DST), b"1234567890\0")], [])


def test_golden_keys() -> None:
    assert queue_key(DST) == b"PID/19433\0"
    assert segment_key(DST, SRC, 1 << 63, 0) == b"PID/19433/20113/9223372036854775808/0\0"


def test_golden_record_with_ids() -> None:
    """Version 2, then the plain record; this format must never change."""
    dst, src = ServerID(DST, 1, NONCLUSTER_VNN, 2), ServerID(SRC, 3, NONCLUSTER_VNN, 4)
    ids = bytes.fromhex(
        "02000000 00000000 e94b0000 914e0000 1800000000000000 01000000 03000000 0200000000000000 0400000000000000"
    )
    assert pack_message(dst, src, 2, b"1234567890\0") == ids + GOLDEN


@given(destinations, sources, st.lists(st.tuples(types, st.binary(max_size=100)), max_size=4))
def test_packed_together(dst: ServerID, src: ServerID, burst: list[tuple[int, bytes]]) -> None:
    dst = dst._replace(unique_id=1) if dst.unique_id in ANY_UNIQUE_ID else dst
    assert pack_messages(dst, src, burst) == b"".join(pack_message(dst, src, *one) for one in burst)


def test_golden_continuation() -> None:
    """Version 3."""
    assert pack_continuation(DST, Continuation(SRC, 5, 6, 7)) == bytes.fromhex(
        "03000000 00000000 e94b0000 914e0000 1800000000000000 0500000000000000 0600000000000000 0700000000000000"
    )


def test_golden_segment_start() -> None:
    """Version 4."""
    start = bytes.fromhex("04000000 00000000 e94b0000 914e0000 0800000000000000 0600000000000000")
    assert pack_segment_start(DST, SRC, 6) == start
    assert segment_number(start + GOLDEN) == 6
    assert segment_number(GOLDEN) is None
    assert segment_number(start[:-1]) is None
    assert decode(start) == ([], [Special(0, SegmentStart(6))])


def test_pids_of_a_key() -> None:
    assert (key_pid(queue_key(7)), key_source_pid(queue_key(7))) == (7, None)
    assert (key_pid(segment_key(7, 8, 9, 10)), key_source_pid(segment_key(7, 8, 9, 10))) == (7, 8)


def expected(dst: ServerID, src: ServerID, message_type: int, data: bytes) -> Message:
    if dst.task_id or src.task_id or dst.unique_id not in ANY_UNIQUE_ID:
        return Message(message_type, src, dst, data)
    return Message(message_type, source_of(src.pid), ServerID(DST), data)


@given(st.lists(messages | continuations, max_size=20))
def test_round_trip(records: list[tuple[ServerID, ServerID, int, bytes] | Continuation]) -> None:
    """Messages with and without ids, and continuations, in any order, are found, counted and skipped."""
    value = b""
    wanted: list[Message] = []
    specials: list[Special] = []
    for record in records:
        if isinstance(record, Continuation):
            value += pack_continuation(DST, record)
            specials.append(Special(len(wanted), record))
        else:
            value += pack_message(*record)
            wanted.append(expected(*record))
    assert decode(value) == (wanted, specials)
    assert count_messages(value) == len(wanted)
    assert all(holds(value, pack_message(*record)) for record in records if not isinstance(record, Continuation))


@given(st.binary(max_size=300))
def test_any_bytes(value: bytes) -> None:
    for message in decode(value)[0]:
        assert message.data in value
    list(record_starts(value))
    count_messages(value)
    holds(value, GOLDEN)
    key_pid(value)
    key_source_pid(value)
    segment_number(value)


@given(st.lists(messages | continuations, max_size=6), st.binary(max_size=60), st.integers(0, 80))
def test_in_parts(
    records: list[tuple[ServerID, ServerID, int, bytes] | Continuation], garbage: bytes, cut: int
) -> None:
    """A value that is read in parts holds what it holds as a whole, but for what is said of its end."""
    packed = [pack_continuation(DST, one) if isinstance(one, Continuation) else pack_message(*one) for one in records]
    value = b"".join(packed) + garbage
    value = value[: max(len(value) - cut, 0)]

    def read(length: int, at: int) -> bytes:
        return value[at : at + length]

    decoder = RecordDecoder(DST, ServerID)
    messages, specials = decoder.decode(value)
    in_parts, specials_in_parts = decoder.decode_parts(read, len(value))
    assert in_parts == messages

    def valid(found: list[Special]) -> list[Special]:
        return [one for one in found if not isinstance(one.what, MalformedMessage)]

    assert valid(specials_in_parts) == valid(specials)
    assert bool(specials_in_parts) == bool(specials)


@given(st.lists(messages, min_size=1, max_size=5), st.integers(1))
def test_torn_at_the_end(records: list[tuple[ServerID, ServerID, int, bytes]], cut: int) -> None:
    """What is in front of the torn record is read, and the torn record is reported."""
    packed = [pack_message(*record) for record in records]
    torn = packed[-1][: cut % len(packed[-1])]
    found, specials = decode(b"".join(packed[:-1]) + torn)
    assert found[: len(records) - 1] == [expected(*record) for record in records[:-1]]
    whole_ids_and_nothing = len(found) == len(records) - 1 and len(torn) == len(packed[-1]) - 24 - len(records[-1][3])
    if torn and not whole_ids_and_nothing:
        assert [type(special.what) for special in specials] == [MalformedMessage]


def test_split_by_source() -> None:
    """Ids and continuations go with their source; what is no whole record is nobody's."""
    one, other = SRC, SRC + 1
    mine = pack_message(ServerID(DST, 1), ServerID(one, 2), 8, b"a"), pack_message(ServerID(DST), ServerID(one), 8, b"")
    theirs = pack_message(ServerID(DST), ServerID(other), 8, b"b"), pack_continuation(DST, Continuation(other, 7, 1, 0))
    value = theirs[0] + mine[0] + theirs[1] + mine[1] + b"torn"
    assert split_by_source(value, one) == (b"".join(mine), b"".join(theirs) + b"torn")
    assert split_by_source(b"", one) == (b"", b"")


def test_ids_belong_to_what_follows_at_once() -> None:
    with_ids = pack_message(ServerID(DST, 3), ServerID(SRC), 2, b"1234567890\0")
    ids = with_ids[: -len(GOLDEN)]
    assert holds(with_ids, with_ids)
    assert not holds(with_ids, GOLDEN), "it is for another task"
    assert holds(with_ids + GOLDEN, GOLDEN)
    unknown = GOLDEN.replace(b"\1\0\0\0", b"\7\0\0\0", 1)
    found, _ = decode(ids + unknown + GOLDEN)
    assert [message.dst for message in found] == [ServerID(DST)]


def test_decoder_keeps_few_addresses() -> None:
    decoder = RecordDecoder(DST, source_of)
    for task in range(5000):
        decoder.decode(pack_message(ServerID(DST, 1), ServerID(SRC, task), 2, b""))
    assert len(decoder._known) <= 1024


LARGE = 80 << 20
"""Bytes: more than malloc() keeps when they are freed (32 MiB), or has reserved for threads of earlier tests (64)."""


def decode_in_little_memory(channel: Channel) -> None:
    """In a child that may get a part of what the first message takes."""
    large = pack_message(ServerID(DST, 1), ServerID(SRC), 0xF001, bytes(LARGE))
    small = pack_message(ServerID(DST), ServerID(SRC), 8, b"small")
    value, decoder = large + small, RecordDecoder(DST, source_of)
    del large
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (8 << 20), most))
    messages, specials = decoder.decode(value)
    resource.setrlimit(resource.RLIMIT_AS, (before, most))
    channel.send(([message.data for message in messages], [(one.position, str(one.what)) for one in specials]))


def test_message_without_memory() -> None:
    """It is lost, and the one behind it is not."""
    with Child(decode_in_little_memory) as child:
        messages, specials = child.hear()
    assert messages == [b"small"]
    assert specials == [(0, f"0xf001 of {LARGE} bytes from pid {SRC}")]
