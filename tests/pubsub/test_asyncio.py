# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The asyncio face: callbacks in the loop, `async for`, acknowledgements, and subscriptions that are too slow."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest

from msgd import Config, ContextClosed
from msgd.aio import PubSub
from msgd.pubsub import Event, Gap, GapReason
from msgd.pubsub import PubSub as SyncPubSub
from tests.pubsub.conftest import StartWorker
from tests.pubsub.test_gaps import killed_before_it_sends
from tests.pubsub.workers import INTERVAL, Notes, heard, pidfds, publish, publish_acked


class Heard:
    """What a loop has heard."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self._news = asyncio.Event()

    def note(self, thing: Event | Gap) -> None:
        self.all.append(thing.data if isinstance(thing, Event) else thing)
        self._news.set()

    async def note_later(self, thing: Event | Gap) -> None:
        await asyncio.sleep(0)
        self.note(thing)

    async def until(self, last: Any) -> list[Any]:
        while last not in self.all:
            self._news.clear()
            await self._news.wait()
        return self.all


def test_callbacks_hear_their_topics_in_order(config: Config, start: StartWorker) -> None:
    publisher, worker = start(config), start(config, "b")
    threads = threading.active_count()

    async def main() -> None:
        async with PubSub(config, check_interval=INTERVAL) as pubsub:
            plain, later = Heard(), Heard()
            pubsub.subscribe("a", plain.note)
            pubsub.subscribe("*", later.note_later)
            for number in range(20):
                publisher.call(publish, "a", number)
            await later.until(19)  # between processes there is no order
            await pubsub.publish("b", "own")
            assert await later.until("own") == [*range(20), "own"]
            assert await plain.until(19) == list(range(20))
            assert (await pubsub.topics())[os.getpid()] == ["*", "a"]
            assert threading.active_count() == threads

    worker.begin(heard, "own")
    asyncio.run(main())
    assert worker.hear() == ["own"]


def test_events_to_iterate_over(config: Config, start: StartWorker) -> None:
    publisher = start(config)

    async def main() -> list[Any]:
        async with PubSub(config) as pubsub, pubsub.events("a.*", "b") as events:
            for topic, data in (("a.x", 1), ("c", 2), ("b", 3)):
                publisher.call(publish, topic, data)
            return [(await anext(events)).data, (await anext(events)).data]

    assert asyncio.run(main()) == [1, 3]


def test_acknowledgements_come_when_the_coroutine_has_returned(config: Config, start: StartWorker) -> None:
    publisher = start(config)

    async def main() -> None:
        async with PubSub(config) as pubsub:
            go_on, heard_it = asyncio.Event(), Heard()

            async def slow(event: Event) -> None:
                await go_on.wait()
                heard_it.note(event)

            pubsub.subscribe("a", slow)
            publisher.begin(publish_acked, "a", 1)
            await asyncio.sleep(0.05)
            assert not publisher.channel.poll(0)
            go_on.set()
            assert await asyncio.to_thread(publisher.hear) == (1, [])
            assert heard_it.all == [1]

            async def fail(event: Event) -> None:
                raise ValueError("no")

            pubsub.subscribe("a", fail)
            assert await asyncio.to_thread(publisher.call, publish_acked, "a", 2) == (0, [os.getpid()])

    asyncio.run(main())


def test_who_is_asked_again_is_watched_still(plain_config: Config, start: StartWorker) -> None:
    workers = [start(plain_config, "a") for _ in range(3)]
    before = set(pidfds())

    async def main() -> None:
        async with PubSub(plain_config) as pubsub:
            await pubsub.publish("a", 1, wait="acked")
            kept = set(pidfds()) - before
            assert len(kept) == 3
            await pubsub.publish("a", 2, wait="acked")
            assert set(pidfds()) - before == kept
            workers[0].kill()
            assert len((await pubsub.publish("a", 3, wait="acked")).acked) == 2
            while len(set(pidfds()) - before) > 2:
                await asyncio.sleep(0)

    asyncio.run(main())
    assert set(pidfds()) == before


def test_publishing_with_acknowledgements(config: Config, start: StartWorker) -> None:
    workers = [start(config, "a") for _ in range(3)]

    async def main() -> None:
        async with PubSub(config) as pubsub:
            notes = Heard()
            pubsub.subscribe("a", notes.note_later)
            for worker in workers[:2]:
                worker.begin(heard, "end")
            workers[2].stop()
            publication = await pubsub.publish("a", 1, wait="acked", timeout=0.3)
            assert publication.acked == {os.getpid(): 1, **{worker.pid: 1 for worker in workers[:2]}}
            assert list(publication.late) == [workers[2].pid]
            pending = asyncio.create_task(pubsub.publish("a", 2, wait="acked", timeout=30))
            await notes.until(2)
            workers[2].kill()
            assert list((await pending).died) == [workers[2].pid]
            several = await asyncio.gather(*(pubsub.publish("a", number, wait="acked") for number in range(3, 13)))
            assert all(one.is_complete for one in several)
            assert notes.all == list(range(1, 13))

    asyncio.run(main())


def test_a_subscription_that_is_too_slow_is_told_and_holds_up_no_other(
    plain_config: Config, start: StartWorker
) -> None:
    publisher = start(plain_config)

    async def main() -> None:
        async with PubSub(plain_config) as pubsub:
            go_on, slow, fast = asyncio.Event(), Heard(), Heard()

            async def wait_first(event: Event) -> None:
                await go_on.wait()
                slow.note(event)

            pubsub.subscribe("a", wait_first, on_gap=slow.note_later, maxsize=10)
            pubsub.subscribe("a", fast.note)
            for number in range(50):
                publisher.call(publish, "a", number)
                await fast.until(number)
            go_on.set()
            gap = Gap(GapReason.SLOW)
            assert (await slow.until(gap)) == [*range(11), gap]
            publisher.call(publish, "a", "end")
            assert await slow.until("end") == [*range(11), gap, "end"]
            assert fast.all == [*range(50), "end"]

    asyncio.run(main())


def test_a_gap_comes_to_the_loop(config: Config, start: StartWorker) -> None:
    publisher = start(config)

    async def main() -> None:
        async with PubSub(config, check_interval=INTERVAL) as pubsub:
            notes, own = Heard(), Heard()
            pubsub.on_gap(notes.note_later)
            pubsub.subscribe("a", own.note, on_gap=own.note)
            publisher.begin(killed_before_it_sends)
            gap = Gap(GapReason.OVERDUE, 1)
            assert await notes.until(gap) == await own.until(gap) == [gap]

    asyncio.run(main())


@pytest.mark.parametrize("sync_first", [True, False])
def test_both_kinds_in_one_process_are_one_subscriber(
    plain_config: Config, start: StartWorker, sync_first: bool
) -> None:
    publisher = start(plain_config)
    sync = SyncPubSub(plain_config)
    notes = Notes(sync)
    if sync_first:
        sync.subscribe("a", notes.note)

    async def main() -> None:
        async with PubSub(plain_config) as pubsub:
            heard_it = Heard()
            pubsub.subscribe("a", heard_it.note)
            if not sync_first:
                sync.subscribe("a", notes.note)
            for number in range(5):
                assert await asyncio.to_thread(publisher.call, publish_acked, "a", number) == (1, [])
            assert heard_it.all == notes.heard == list(range(5))

    asyncio.run(main())
    assert publisher.call(publish_acked, "a", "after") == (1, [])
    assert notes.heard[-1] == "after"
    sync.close()


def test_cancelling_and_closing_leave_nothing(plain_config: Config, start: StartWorker) -> None:
    slow = start(plain_config, "a")
    slow.stop()
    before = len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        pubsub = PubSub(plain_config)
        with pytest.raises(ContextClosed, match="async with"):
            await pubsub.publish("a")
        async with pubsub:
            pending = asyncio.create_task(pubsub.publish("a", wait="acked", timeout=None))
            await asyncio.sleep(0)
            pending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pending
            with pytest.raises(ContextClosed):
                await pubsub.__aenter__()
        await pubsub.aclose()

    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_was_published_before_it_was_entered_can_be_told(plain_config: Config) -> None:
    pubsub = PubSub(plain_config)
    with SyncPubSub(plain_config) as other:
        other.publish("a", 1)

        async def main() -> None:
            heard_it = Heard()
            async with pubsub:
                pubsub.subscribe("a", heard_it.note, on_gap=heard_it.note)
                pubsub.tell_what_was_before()
                assert await heard_it.until(Gap(GapReason.BEFORE)) == [Gap(GapReason.BEFORE)]

        asyncio.run(main())
