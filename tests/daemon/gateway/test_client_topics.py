# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Topics by msgd.client.Client and msgd.aio.Client."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from msgd import GatewayClosed, HandlerFailed, MalformedMessage, MessageTooLarge, ReplyTimeout, aio
from msgd.client import Client
from msgd.pubsub import Event, Gap, GapReason, PubSub
from msgd.pubsub.parcel import pack_parcel
from tests.pubsub.conftest import StartWorker
from tests.pubsub.conftest import start as start
from tests.pubsub.test_acked import raising
from tests.pubsub.workers import heard, publish_acked
from tests.support.daemons import PATIENCE, Place


@pytest.fixture
def pubsub(place: Place) -> Iterator[PubSub]:
    place.msgd()
    with PubSub(place.config) as pubsub:
        yield pubsub


def until(client: Client, is_there: Callable[[], object]) -> None:
    while not is_there():
        assert client.dispatch(PATIENCE), "nothing has come"


def test_what_is_published_arrives_as_what_it_is(place: Place, pubsub: PubSub) -> None:
    heard: list[Event] = []
    with Client(place.gateway) as client, Client(place.gateway) as other:
        client.subscribe("a.*", heard.append)
        published: list[Any] = [b"plain", b"\xff\0", "text", "\0", {"a": [None]}, None, 0, ""]
        for data in published:
            assert other.publish("a.b", data).is_complete
        for data in published:
            pubsub.publish("a.c", data)
        until(client, lambda: len(heard) == 2 * len(published))
        assert [event.data for event in heard] == 2 * published
        assert {event.topic for event in heard} == {"a.b", "a.c"}
        assert {event.src for event in heard if event.topic == "a.c"} == {pubsub._open().messaging.server_id}


def test_who_has_handled_it_and_who_has_not(place: Place, pubsub: PubSub, start: StartWorker) -> None:
    good, bad, slow = start(place.config, "a"), start(place.config, first=raising), start(place.config, "a")
    for worker in (good, bad):
        worker.begin(heard, "end")
    slow.stop()
    with Client(place.gateway) as client, Client(place.gateway) as other:
        other.subscribe("a", print)
        publication = client.publish("a", 1, wait="acked", timeout=1)
        assert publication.acked == {good.pid: 1, other.server_id.pid: 1}
        assert publication.delivered == 2
        assert not publication.is_complete
        failed, late = publication.failures[bad.pid], publication.failures[slow.pid]
        assert isinstance(failed, HandlerFailed)
        assert "ValueError: not 1" in str(failed)
        assert isinstance(late, ReplyTimeout)
        assert "within 1 seconds" in str(late)
        slow.kill()
        bad.kill()
        publication = client.publish("a", 2, wait="acked", timeout=None)
        assert publication.is_complete
        assert publication.acked == {good.pid: 1, other.server_id.pid: 1}


def test_who_subscribes_to_what(place: Place, pubsub: PubSub, start: StartWorker) -> None:
    worker = start(place.config, "a.*", "b")
    with Client(place.gateway) as client:
        assert client.topics() == {worker.pid: ["a.*", "b"]}
        client.subscribe("c", print)
        client.subscribe("c", print)
        client.subscribe("d", print)
        assert client.topics() == {worker.pid: ["a.*", "b"], client.server_id.pid: ["c", "d"]}
        client.unsubscribe("c", "d")
        worker.stop()
        assert client.topics(timeout=0.1) == {}
        worker.resume()


def test_callbacks_run_in_dispatch_and_receive(place: Place, pubsub: PubSub, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[object] = []
    with Client(place.gateway) as client:

        def fail(event: Event) -> None:
            raise ValueError("no")

        client.subscribe("a", fail)
        client.subscribe("a", heard.append, on_gap=heard.append)
        client.subscribe("*", heard.append)
        pubsub.publish("a", 1, wait="acked")
        client.ping()
        assert heard == []
        assert client.receive(0) is None
        assert [event.data for event in heard if isinstance(event, Event)] == [1, 1]
        assert "a callback for a" in caplog.text
        client.unsubscribe("*")
        pubsub.publish("b", 2)
        pubsub.publish("a", 3, wait="acked")
        assert client.dispatch(PATIENCE) == 1
        lose(pubsub)
        until(client, lambda: isinstance(heard[-1], Gap))
        assert heard[-1] == Gap(GapReason.OVERDUE, 1)
        client.register(0xF000)
        pubsub.publish("a", 4)
        pubsub._open().messaging.send(client.server_id, 0xF000, b"x")
        message = client.receive(PATIENCE)
        assert message is not None
        assert message.data == b"x"
        until(client, lambda: len(heard) == 5)
        client.unsubscribe("a")
        client.subscribe("a", heard.append)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "msgd"):
            lose(pubsub)
            until(client, lambda: "there is no on_gap" in caplog.text)


def lose(pubsub: PubSub) -> None:
    """A publication that is counted, and lost."""
    hub = pubsub._open()
    with hub.numbered(pack_parcel("lost", b"", hub.config.max_message_size), include_self=False):
        pass


def test_what_cannot_be_published(place: Place) -> None:
    place.configure("log level = 3", "msgd:client line bytes = 4K")
    place.msgd()
    with Client(place.gateway) as client:
        with pytest.raises(MessageTooLarge, match=r"^it makes a line of \d+; msgd:client line bytes is 4096 there"):
            client.publish("a", bytes(4000))
        with pytest.raises(ValueError, match="cannot be a topic"):
            client.publish("a*")
        with pytest.raises(TypeError):
            client.publish("a", object())  # type: ignore[arg-type]
        with pytest.raises(MalformedMessage, match="wait"):
            client.publish("a", wait="ack")  # type: ignore[arg-type]
        with pytest.raises(MalformedMessage, match="topics"):
            client.subscribe("", print)
        client.ping()


def test_asyncio(place: Place, pubsub: PubSub, start: StartWorker) -> None:
    worker = start(place.config, "a.*")

    async def main() -> None:
        async with aio.Client(place.gateway) as client, aio.Client(place.gateway) as other:
            heard_here: list[object] = []
            has_come = asyncio.Event()

            async def note(event: Event) -> None:
                await other.ping()
                heard_here.append(event.data)
                has_come.set()

            subscription = await client.subscribe("a.b", note)
            async with client.events("a.*", "c") as events:
                publication = await other.publish("a.b", None, wait="acked")
                assert publication.acked == {worker.pid: 1, client.server_id.pid: 2}
                worker.call(publish_acked, "c", b"x")
                assert [((await anext(events)).topic), (await anext(events)).data] == ["a.b", b"x"]
                await has_come.wait()
                assert heard_here == [None]
                assert await other.topics() == {worker.pid: ["a.*"], client.server_id.pid: ["a.*", "a.b", "c"]}
                subscription.close()
                await client.unsubscribe("c")
                assert await other.topics() == {worker.pid: ["a.*"], client.server_id.pid: ["a.*"]}
                await other.publish("a.b", "last")
                assert (await anext(events)).data == "last"
            assert client.server_id.pid not in await client.topics()
            assert heard_here == [None]

    asyncio.run(main())


def test_asyncio_the_end_is_a_gap_behind_what_has_come(place: Place, pubsub: PubSub) -> None:
    async def main() -> None:
        async with aio.Client(place.gateway) as client:
            told: list[object] = []
            gap = asyncio.Event()

            def miss(one: Gap) -> None:
                told.append(one)
                gap.set()

            await client.subscribe("a", told.append, on_gap=miss)
            async with client.events("a") as events:
                await client.publish("a", 1, wait="acked")
                os.kill(client.server_id.pid, signal.SIGTERM)
                await gap.wait()
                assert [one.data if isinstance(one, Event) else one for one in told] == [1, Gap(GapReason.ENDED)]
                assert (await anext(events)).data == 1
                with pytest.raises(GatewayClosed, match="stopped"):
                    await anext(events)
            with pytest.raises(GatewayClosed):
                await client.subscribe("b", print)

    asyncio.run(main())


def test_asyncio_who_is_too_slow_is_told_of_a_gap(place: Place, pubsub: PubSub) -> None:
    async def main() -> None:
        async with aio.Client(place.gateway) as client:
            gaps: list[Gap] = []
            async with client.events("a", on_gap=gaps.append, maxsize=2) as events:
                for number in range(4):
                    await client.publish("a", number, wait="acked")
                assert [(await anext(events)).data for _ in range(2)] == [0, 1]
                await client.publish("a", 4, wait="acked")
                assert (await anext(events)).data == 4
                assert gaps == [Gap(GapReason.SLOW)]

    asyncio.run(main())


def test_asyncio_leaving_cancels_callbacks(place: Place, pubsub: PubSub) -> None:
    async def main() -> list[str]:
        ended: list[str] = []
        begun = asyncio.Event()

        async def wait(event: Event) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled")

        async with aio.Client(place.gateway) as client:
            await client.subscribe("a", wait)
            await client.publish("a")
            await begun.wait()
        await asyncio.sleep(0)
        return ended

    assert asyncio.run(main()) == ["cancelled"]
