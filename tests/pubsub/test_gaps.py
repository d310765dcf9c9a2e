# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Loss is never silent: whatever keeps a publication from a subscriber, it is told of a gap, and soon."""

from __future__ import annotations

import os
import signal

import pytest

from msgd import Config, UnsafeDirectory
from msgd.pubsub import Gap, GapReason, PubSub
from msgd.pubsub.parcel import pack_parcel
from msgd.pubsub.table import FILE, Table
from tests.pubsub.conftest import StartWorker
from tests.pubsub.workers import Notes, heard, publish, settle, so_far


def flood(notes: Notes, number: int) -> int:
    """Publish so many that some find a full queue; how many did."""
    return sum(bool(publish(notes, "a", one, include_self=False)[1]) for one in range(number))


def test_a_full_queue_shows_without_a_further_publication(config: Config, start: StartWorker) -> None:
    config = config.replace(send_queue_messages=5, send_queue_bytes=2048, max_message_size=2048)
    slow, publisher = start(config, "a"), start(config, first=opened)
    slow.stop()
    assert publisher.call(flood, 3000) > 0
    slow.resume()
    publisher.begin(heard, "nothing")
    heard_by_slow = slow.call(heard, Gap)
    assert 0 in heard_by_slow
    assert {gap.reason for gap in heard_by_slow if isinstance(gap, Gap)} <= {GapReason.OVERDUE, GapReason.MISSING}
    assert slow.call(settle)[-1] != 2999


def opened(notes: Notes) -> None:
    notes.pubsub.start()


def test_a_publisher_that_is_killed_with_publications_in_its_memory(plain_config: Config, start: StartWorker) -> None:
    slow, publisher = start(plain_config, "a"), start(plain_config, first=opened)
    slow.stop()
    assert publisher.call(flood, 1000) == 0
    publisher.kill()
    slow.resume()
    assert any(gap.reason is GapReason.OVERDUE for gap in slow.call(heard, Gap) if isinstance(gap, Gap))


def killed_before_it_sends(notes: Notes) -> None:
    hub = notes.pubsub._open()
    with hub.numbered(pack_parcel("a", b"lost", hub.config.max_message_size), include_self=False):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("is_known", [False, True], ids=["unheard of", "known"])
def test_a_publisher_that_is_killed_between_counting_and_sending(
    config: Config, start: StartWorker, is_known: bool
) -> None:
    worker, publisher, nobody = start(config, "a"), start(config), start(config)
    if is_known:
        publisher.call(publish, "a", 0)
    publisher.begin(killed_before_it_sends)
    publisher.wait()
    expected = [0] * is_known + [Gap(GapReason.OVERDUE, 1)]
    assert worker.call(heard, Gap) == expected
    nobody.call(publish, "a", "end")
    assert worker.call(heard, "end") == [*expected, "end"]


def test_the_next_owner_of_a_slot_goes_on_with_its_numbers(config: Config, start: StartWorker) -> None:
    worker, first, second = start(config, "a"), start(config), start(config)
    first.call(publish, "a", 1)
    first.begin(killed_before_it_sends)
    first.wait()
    worker.stop()
    assert second.call(slot_after_publishing, 2) == (0, 3)
    worker.resume()
    events = worker.call(heard, 2)
    assert [one for one in events if not isinstance(one, Gap)] == [1, 2]
    assert sum(one.missed for one in events if isinstance(one, Gap)) == 1


def slot_after_publishing(notes: Notes, data: object) -> tuple[int, int]:
    publish(notes, "a", data)
    hub = notes.pubsub._open()
    assert hub._slot is not None
    return hub._slot.index, hub.progress.table.number(hub._slot.index)


def test_what_was_published_before_it_subscribed(config: Config, start: StartWorker) -> None:
    publisher = start(config)
    publisher.call(publish, "opens", "it")
    fresh, late = Notes(PubSub(config, background=False)), Notes(PubSub(config, background=False))
    try:
        fresh.pubsub.subscribe("a", fresh.note, on_gap=fresh.note_gap)
        assert fresh.gaps() == []
        fresh.pubsub.close()
        publisher.call(publish, "a", 1)
        late.pubsub.subscribe("a", late.note, on_gap=late.note_gap)
        assert late.gaps() == [Gap(GapReason.BEFORE)]
    finally:
        late.pubsub.close()


def test_generation_counts_every_publication(config: Config, start: StartWorker, pubsub: PubSub) -> None:
    publishers = [start(config) for _ in range(3)]
    for publisher in publishers:
        publisher.call(publish, "a", 1)
    assert pubsub.generation() == 3
    publishers[0].kill()
    start(config).call(publish, "a", 1)
    assert pubsub.generation() == 4
    pubsub.publish("a")
    assert pubsub.generation() == 5


def test_a_gap_without_on_gap_is_logged(
    plain_config: Config, start: StartWorker, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = start(plain_config)
    publisher.call(publish, "a", 1)
    late = PubSub(plain_config)
    publisher.call(publish, "a", 1)
    late.subscribe("a", print)
    late.close()
    assert "there is no on_gap: something was published before this process subscribed" in caplog.text


def test_a_table_that_has_been_removed_is_replaced(config: Config, start: StartWorker) -> None:
    worker, publisher = start(config, "a"), start(config)
    publisher.call(publish, "a", 1)
    worker.call(heard, 1)
    os.unlink(os.path.join(config.lock_directory, FILE))
    events = worker.call(heard, Gap)
    assert Gap(GapReason.TABLE) in events
    publisher.call(publish, "a", 2)
    assert worker.call(heard, 2)[-1] == 2
    assert worker.call(so_far)[0] == 1


@pytest.mark.parametrize("damage", ["short", "magic", "open"])
def test_a_damaged_table_is_refused(plain_config: Config, damage: str) -> None:
    with PubSub(plain_config) as pubsub:
        pubsub.publish("a")
    path = os.path.join(plain_config.lock_directory, FILE)
    if damage == "short":
        os.truncate(path, 100)
    elif damage == "open":
        os.chmod(path, 0o644)
    else:
        with open(path, "r+b") as file:
            file.write(b"x")
    with pytest.raises(UnsafeDirectory, match="remove it"):
        PubSub(plain_config).start()


def test_a_number_that_was_never_published_is_dropped(config: Config, start: StartWorker, pubsub: PubSub) -> None:
    worker = start(config, "a")
    hub = pubsub._open()
    pubsub.publish("a", 1)
    with hub.numbered(pack_parcel("a", b"true", hub.config.max_message_size), include_self=False) as (frame, (dst, *_)):
        hub.messaging.send(dst, "0x6d737000", frame[:16] + (2**63).to_bytes(8, "little") + frame[24:])
        hub.messaging.send(dst, "0x6d737000", b"garbage")
    pubsub.publish("a", 2)
    events = worker.call(heard, 2)
    assert events == [1, Gap(GapReason.MISSING, 1), 2]
    assert worker.call(drops) == {"a bad publication": 2}


def drops(notes: Notes) -> dict[str, int]:
    return dict(notes.pubsub._open().messaging.statistics().drops)


def test_slots_are_used_again_and_run_out(plain_config: Config) -> None:
    with PubSub(plain_config) as pubsub:
        pubsub.publish("a")
        table = Table(plain_config.lock_directory)
        slots = [table.take_slot() for _ in range(3)]
        assert [slot.index for slot in slots] == [1, 2, 3]
        assert [slots[0].advance() for _ in range(3)] == [1, 2, 3]
        slots[0].release()
        again = table.take_slot()
        assert (again.index, again.advance()) == (1, 4)
        assert table.generation() == 5
        for slot in (*slots[1:], again):
            slot.release()
        table.close()


def test_checks_cost_nothing_while_nothing_is_published(plain_config: Config, start: StartWorker) -> None:
    worker = start(plain_config, "a")
    worker.call(publish, "a", 1)
    worker.call(settle)
    before = worker.call(received)
    ticks = worker.call(ticked, 3)
    assert ticks == [False] * 3
    assert worker.call(received) == before


def received(notes: Notes) -> int:
    return notes.pubsub._open().messaging.statistics().received


def ticked(notes: Notes, number: int) -> list[bool]:
    return [notes.pubsub._open().progress.tick() for _ in range(number)]
