# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Fragments and their reassembly, with interleaved senders and false lengths."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from msgd import MalformedMessage
from msgd.wire.dgram import (
    BATCH_COOKIE,
    DATAGRAM_MAX,
    FRAGMENT,
    FRAGMENT_PAYLOAD_MAX,
    LONG_DATAGRAM_MAX,
    WHOLE_MAX,
    Reassembler,
    pack_batch,
    split_batch,
)
from msgd.wire.header import HEADER_SIZE
from tests.wire.joined import add, expire, fragment

TIMEOUT = 60.0
messages = st.binary(min_size=HEADER_SIZE, max_size=6000)
cookies = st.integers(1, 0xFFFFFFFFFFFFFFFF)


def split(message: bytes) -> tuple[bytes, bytes]:
    """Header and data, as the Reassembler returns them."""
    return message[:HEADER_SIZE], message[HEADER_SIZE:]


def make(max_total: int = 1 << 20, per_sender: int = 16) -> Reassembler:
    return Reassembler(max_total, 16 * max_total, per_sender, TIMEOUT, io.BytesIO)


@pytest.mark.parametrize("size", [52, 999, 1000, 1001, 1016, 1017, 2000, 2552, 100_000])
def test_pieces(size: int) -> None:
    message = os.urandom(size)
    datagrams = list(fragment(message, 5, 6, 7))
    assert len(datagrams) == -(-size // 1000)
    assert all(len(one) == DATAGRAM_MAX for one in datagrams[:-1])
    assert b"".join(one[24:] for one in datagrams) == message
    assert {one[:24] for one in datagrams} == {FRAGMENT.pack(5, size, 6, 7)}


@given(st.binary(min_size=HEADER_SIZE, max_size=200), st.sets(st.integers(1, 199), max_size=4))
def test_any_cuts(message: bytes, cuts: set[int]) -> None:
    """Fragments may begin and end anywhere, in the middle of the header, too."""
    places = [0, *sorted(cut for cut in cuts if cut < len(message)), len(message)]
    reassembler = make()
    for start, end in pairwise(places):
        whole = add(reassembler, FRAGMENT.pack(5, len(message), 6, 7) + message[start:end], 6, 0)
        assert (whole is None) == (end < len(message))
    assert whole == split(message)
    assert reassembler._bytes == 0


@given(st.lists(st.binary(min_size=HEADER_SIZE, max_size=WHOLE_MAX), min_size=1, max_size=20))
def test_batch(batch: list[bytes]) -> None:
    datagram = pack_batch(batch)
    assert datagram.startswith(BATCH_COOKIE)
    assert split_batch(datagram) == batch


@pytest.mark.parametrize(
    ("datagram", "complaint"),
    [
        (BATCH_COOKIE, "at least one message"),
        (BATCH_COOKIE + bytes(3), "in the middle of a length, after 0 messages"),
        (BATCH_COOKIE + bytes(4), "a message of 0 bytes"),
        (pack_batch([bytes(HEADER_SIZE - 1)]), f"a message of {HEADER_SIZE - 1} bytes"),
        (pack_batch([bytes(WHOLE_MAX + 1)]), f"a message of {WHOLE_MAX + 1} bytes"),
        (pack_batch([bytes(HEADER_SIZE)])[:-1], f"{HEADER_SIZE} bytes in a batch with {HEADER_SIZE - 1} left"),
        (pack_batch([bytes(HEADER_SIZE)]) + b"\xff" * 4, "a message of 4294967295 bytes"),
        (pack_batch([bytes(HEADER_SIZE)]) + b"x", "in the middle of a length, after 1 messages"),
    ],
)
def test_malformed_batch(datagram: bytes, complaint: str) -> None:
    with pytest.raises(MalformedMessage, match=complaint):
        split_batch(datagram)


@given(messages, cookies, st.integers(0, 5))
def test_start(message: bytes, cookie: int, pieces: int) -> None:
    """A message that was interrupted continues with the next fragment."""
    datagrams = list(fragment(message, cookie, 1, 2))
    assert list(fragment(message, cookie, 1, 2, pieces * FRAGMENT_PAYLOAD_MAX)) == datagrams[pieces:]


@pytest.mark.parametrize("size", [1017, 2000, 65_536, 200_000])
def test_long_pieces(size: int) -> None:
    """The first is short, so that the receiver knows by it that longer ones may follow."""
    message = os.urandom(size)
    first, *others = fragment(message, 5, 6, 7, longest=LONG_DATAGRAM_MAX)
    assert len(first) == DATAGRAM_MAX
    assert all(len(one) == LONG_DATAGRAM_MAX for one in others[:-1])
    assert b"".join(one[24:] for one in (first, *others)) == message
    assert {one[:24] for one in others} == {FRAGMENT.pack(5, size, 6, 7)}


def test_length_that_changes_in_the_middle() -> None:
    """A message that was begun in long fragments can go on in short ones."""
    message = os.urandom(200_000)
    begun = list(fragment(message, 5, 6, 7, longest=LONG_DATAGRAM_MAX))[:2]
    sent = sum(len(one) - FRAGMENT.size for one in begun)
    reassembler = make()
    results = [add(reassembler, one, 6, 0) for one in (*begun, *fragment(message, 5, 6, 7, sent))]
    assert results[-1] == split(message)


senders = st.tuples(st.integers(1, 4), st.integers(3, 5))
"""pid and socket number."""

longest = st.sampled_from([DATAGRAM_MAX, 2500, LONG_DATAGRAM_MAX])


@settings(max_examples=200)
@given(st.lists(st.tuples(senders, messages, longest), max_size=10), st.randoms(use_true_random=False))
def test_interleaved_senders(sent: list[tuple[tuple[int, int], bytes, int]], random: Any) -> None:
    """The fragments of each sender are in order; those of different senders are mixed."""
    streams: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    expected: dict[tuple[int, int], list[tuple[bytes, bytes]]] = defaultdict(list)
    for cookie, (sender, message, longest) in enumerate(sent, 1):
        streams[sender].extend(fragment(message, cookie, *sender, longest=longest))
        expected[sender].append(split(message))
    reassembler, received = make(), defaultdict(list)
    while streams:
        sender = random.choice(sorted(streams))
        whole = add(reassembler, streams[sender].pop(0), sender[0], 0)
        if whole is not None:
            received[sender].append(whole)
        if not streams[sender]:
            del streams[sender]
    assert received == expected
    assert len(reassembler) == 0
    assert not reassembler
    assert reassembler.take_abandoned() == 0


def test_total_bytes_are_bounded_and_the_stalest_message_is_abandoned() -> None:
    reassembler = Reassembler(10_000, 10_000, 16, TIMEOUT, io.BytesIO)
    honest = list(fragment(bytes(9000), 1, 99, 3))
    assert add(reassembler, honest[0], 99, 0) is None
    for pid in range(1, 50):  # each leaves 3,000 bytes; the honest one stops after a while and becomes the stalest
        for datagram in list(fragment(bytes(9000), 1, pid, 3))[:3]:
            assert add(reassembler, datagram, pid, 0) is None
        if pid <= 7:
            assert add(reassembler, honest[pid], 99, 0) is None
    assert len(reassembler) <= 4
    assert reassembler.take_abandoned() >= 46


@given(messages.filter(lambda one: len(one) > 1000), messages, cookies, cookies)
def test_new_cookie_abandons(first: bytes, second: bytes, cookie: int, other: int) -> None:
    reassembler = make()
    assert add(reassembler, next(fragment(first, cookie, 1, 2)), 1, 0) is None
    if other == cookie:
        other = cookie % 0xFFFFFFFFFFFFFFFF + 1
    results = [add(reassembler, one, 1, 0) for one in fragment(second, other, 1, 2)]
    assert results[-1] == split(second)
    assert not any(results[:-1])
    assert reassembler.take_abandoned() == 1
    assert reassembler.take_abandoned() == 0


def test_per_sender_bound_spares_other_senders() -> None:
    reassembler = make(per_sender=3)
    kept = next(fragment(bytes(2000), 1, 77, 1))
    add(reassembler, kept, 77, 0)
    for number in range(10):
        add(reassembler, next(fragment(bytes(2000), 1, 5, number)), 5, 0)
    assert len(reassembler) == 4
    assert reassembler.take_abandoned() == 7
    *_, last = fragment(bytes(2000), 1, 77, 1)
    assert add(reassembler, last, 77, 0) == split(bytes(2000))
    for number in (7, 8, 9):
        *_, last = fragment(bytes(2000), 1, 5, number)
        assert add(reassembler, last, 5, 0) == split(bytes(2000)), "the newest are kept"


def test_expiry() -> None:
    """It counts from the last fragment; a late fragment begins a new message and is not joined to the expired one."""
    reassembler = make()
    first, second, third = fragment(bytes(2500), 1, 5, 3)
    add(reassembler, first, 5, 0)
    add(reassembler, second, 5, TIMEOUT)
    expire(reassembler, 2 * TIMEOUT)
    assert len(reassembler) == 1
    expire(reassembler, 2 * TIMEOUT + 1)
    assert len(reassembler) == 0
    assert reassembler.take_abandoned() == 1
    add(reassembler, first, 5, 0)
    add(reassembler, second, 5, 0)
    assert add(reassembler, third, 5, TIMEOUT + 1) is None
    assert reassembler.take_abandoned() == 1


@pytest.mark.parametrize(
    ("datagram", "pid"),
    [
        (b"", 1),
        (bytes(24), 1),
        (FRAGMENT.pack(1, 100, 1, 1), 1),
        (FRAGMENT.pack(1, 100, 1, 1) + b"x", 2),
        (FRAGMENT.pack(1, HEADER_SIZE - 1, 1, 1) + b"x", 1),
        (FRAGMENT.pack(1, (1 << 20) + 1, 1, 1) + b"x", 1),
        (FRAGMENT.pack(1, 0xFFFFFFFFFFFFFFFF, 1, 1) + b"x", 1),
        (FRAGMENT.pack(1, 52, 1, 1) + bytes(53), 1),
        (FRAGMENT.pack(1, 1 << 20, 1, 1) + bytes(LONG_DATAGRAM_MAX - FRAGMENT.size + 1), 1),
    ],
)
def test_malformed(datagram: bytes, pid: int) -> None:
    reassembler = make()
    with pytest.raises(MalformedMessage):
        add(reassembler, datagram, pid, 0)
    assert len(reassembler) == 0
    assert not reassembler


@given(st.binary(max_size=1100), st.none() | st.integers(0, 5))
def test_garbage(datagram: bytes, pid: int | None) -> None:
    reassembler = make()
    try:
        whole = add(reassembler, datagram, pid, 0)
    except MalformedMessage:
        assert len(reassembler) == 0
    else:
        assert (whole is None) == (len(reassembler) == 1)


class Hostile(RuleBasedStateMachine):
    """Any fragments at any time: only MalformedMessage is raised, and memory stays within the bounds."""

    MAX_TOTAL = 5000
    PER_SENDER = 3

    def __init__(self) -> None:
        super().__init__()
        self.reassembler = Reassembler(self.MAX_TOTAL, 1 << 30, self.PER_SENDER, TIMEOUT, io.BytesIO)
        self.now = 0.0
        self.pids: set[int] = set()

    @rule(
        cookie=st.integers(0, 3),
        total=st.integers(0, 6000),
        pid=st.integers(1, 3),
        number=st.integers(0, 8),
        length=st.integers(0, 1001),
        honest=st.booleans(),
    )
    def add(self, cookie: int, total: int, pid: int, number: int, length: int, honest: bool) -> None:
        self.pids.add(pid)
        datagram = FRAGMENT.pack(cookie, total, pid, number) + bytes(length)
        try:
            whole = add(self.reassembler, datagram, pid if honest else pid + 1, self.now)
        except MalformedMessage:
            return
        assert honest
        assert whole is None or sum(map(len, whole)) == total <= self.MAX_TOTAL

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        expire(self.reassembler, self.now)

    @invariant()
    def bounded(self) -> None:
        assert len(self.reassembler) <= self.PER_SENDER * len(self.pids)
        assert bool(self.reassembler) == (len(self.reassembler) > 0)
        assert self.reassembler.take_abandoned() >= 0


TestHostile = Hostile.TestCase
