# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A file that was damaged and has been rebuilt: what is left of the queues goes on."""

from __future__ import annotations

import pytest

from msgd.backends.tdb.repair import announce_again
from msgd.wire.tdb_record import (
    Continuation,
    continuations_in,
    pack_continuation,
    pack_segment_start,
    queue_key,
    segment_key,
)
from tests.backends.conftest import MakeConfig, StartPeer
from tests.backends.tdb.conftest import MODES
from tests.backends.tdb.test_crash import scribble
from tests.backends.tdb.test_deep_queue import MANY, numbered, send_numbered
from tests.support.harness import Child, Session, send_many


def take_until(session: Session, last: bytes) -> list[bytes]:
    """Everything up to the message that is the last one."""
    while not session.messages or session.messages[-1].data != last:
        session.messaging.dispatch(None)
    return [message.data for message in session.messages]


@pytest.mark.parametrize("mode", MODES)
def test_segments_whose_announcement_was_lost(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    """PID/<pid> cannot be read any more, and it was what led to the segments.  They arrive, and what is sent then."""
    config = make_config(**MANY, **MODES[mode])
    receiver, sender = start(config), start(config)
    sender.call(send_numbered, receiver.server_id, b"a", 3000, None)
    with Child(lambda channel: scribble(config, queue_key(receiver.pid))) as child:
        assert child.wait() == 0
    sender.call(send_many, receiver.server_id, [b"after"])
    *data, last = receiver.call(take_until, b"after")
    assert last == b"after"
    assert 1000 < len(data) < 3000, "what was in PID/<pid> is lost, the rest is not"
    assert data == numbered(b"a", 3000)[-len(data) :]


QUEUE = queue_key(1)
SLOTS = [segment_key(1, 2, 22, slot) for slot in range(5)]
HIGHEST = segment_key(1, 2, 2**64 - 1, 0)


def start_of(number: int) -> bytes:
    return pack_segment_start(1, 2, number)


def to(number: int, slot: int) -> bytes:
    return pack_continuation(1, Continuation(2, 22, number, slot))


@pytest.mark.parametrize(
    ("records", "added"),
    [
        ({QUEUE: b"", SLOTS[0]: start_of(7)}, {QUEUE: to(7, 0)}),
        ({QUEUE: to(7, 0), SLOTS[0]: start_of(7)}, {}),
        ({QUEUE: b"", SLOTS[0]: start_of(7) + to(8, 1), SLOTS[1]: start_of(8)}, {QUEUE: to(7, 0)}),
        ({QUEUE: b"", SLOTS[0]: start_of(8), SLOTS[1]: start_of(7) + to(8, 0)}, {QUEUE: to(7, 1)}),
        (
            {QUEUE: to(7, 0), SLOTS[0]: start_of(7) + to(8, 1), SLOTS[2]: start_of(9) + to(10, 3)},
            {SLOTS[0]: to(9, 2)},
        ),
        ({QUEUE: b"", HIGHEST: start_of(1)}, {QUEUE: pack_continuation(1, Continuation(2, 2**64 - 1, 1, 0))}),
        ({SLOTS[0]: start_of(7)}, {}),
        ({QUEUE: b"", b"PID/1/2/x/0\0": start_of(7), b"PID/1/2/" + b"9" * 20 + b"/0\0": start_of(8)}, {}),
        ({QUEUE: b"torn", SLOTS[0]: b"", SLOTS[1]: start_of(3)[:-1]}, {}),
    ],
    ids=[
        "lost",
        "not lost",
        "a chain",
        "a slot used again",
        "a gap",
        "a high id",
        "no receiver",
        "damaged keys",
        "torn",
    ],
)
def test_what_is_announced_again(records: dict[bytes, bytes], added: dict[bytes, bytes]) -> None:
    before = dict(records)
    announce_again(records)
    assert records == {key: value + added.get(key, b"") for key, value in before.items()}
    assert all(len(continuations_in(value)) == 1 for value in added.values())
