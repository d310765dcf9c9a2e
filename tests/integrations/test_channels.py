# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The Channels layer does what Channels asks of one, in a process and between processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import TREE
from tests.support.harness import Channel, Child

pytest.importorskip("channels", reason="channels is not installed")
pytest.importorskip("msgpack", reason="msgpack is not installed")

from channels.exceptions import ChannelFull

from msgd.integrations.channels import MsgdChannelLayer

HELLO = {"type": "test.message", "text": "Ahoy-hoy!", "bytes": b"\x00\xff"}
Test = Callable[[MsgdChannelLayer], Awaitable[object]]


@pytest.fixture
def directory(scratch: Path) -> str:
    return str(scratch / "lock")


def run(directory: str, test: Test, **config: Any) -> None:
    async def body() -> None:
        layer = MsgdChannelLayer(directory, capacity=3, **config)
        try:
            async with asyncio.timeout(30):
                await test(layer)
        finally:
            await layer.close()

    asyncio.run(body())


async def nothing_in(layer: MsgdChannelLayer, channel: str) -> bool:
    """Whether nothing waits in a channel: what is sent now is the next thing that is received."""
    await layer.send(channel, {"type": "last"})
    return bool(await layer.receive(channel) == {"type": "last"})


def test_send_and_receive(directory: str) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        for channel in ("test-channel-1", await layer.new_channel()):
            await layer.send(channel, HELLO)
            message = await layer.receive(channel)
            assert message == HELLO
            assert message is not HELLO

    run(directory, test)


def test_each_receiver_gets_one_message(directory: str) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        one, other = asyncio.create_task(layer.receive("a")), asyncio.create_task(layer.receive("a"))
        await asyncio.sleep(0)
        await layer.send("a", {"n": 1})
        await layer.send("a", {"n": 2})
        assert [await one, await other] == [{"n": 1}, {"n": 2}]

    run(directory, test)


def test_new_channels_differ_and_have_the_prefix(directory: str) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        one, other = await layer.new_channel("mine"), await layer.new_channel("mine")
        assert one != other
        assert one.startswith("mine.")
        assert layer.require_valid_channel_name(one)

    run(directory, test)


def test_bad_names_and_messages(directory: str) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        for wrong in (layer.send("=+135!", HELLO), layer.receive("=+135!"), layer.group_send("a group", HELLO)):
            with pytest.raises(TypeError):
                await wrong
        with pytest.raises(TypeError, match="dict"):
            await layer.send("a", "text")  # type: ignore[arg-type]

    run(directory, test)


def test_capacity(directory: str) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        for channel, capacity in (("a", 3), ("large.one", 5), ("small", 1)):
            for n in range(capacity):
                await layer.send(channel, {"n": n})
            with pytest.raises(ChannelFull):
                await layer.send(channel, {"n": capacity})
            assert [(await layer.receive(channel))["n"] for _ in range(capacity)] == list(range(capacity))
            assert await nothing_in(layer, channel)

    run(directory, test, channel_capacity={"large.*": 5, "small": 1})


def test_expiry(directory: str) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        channel = await layer.new_channel()
        await layer.group_add("group", channel)
        await layer.send(channel, HELLO)
        await asyncio.sleep(0.06)  # the time that it may wait is what is tested
        assert await nothing_in(layer, channel)
        await layer.group_send("group", HELLO)  # nobody received there: it has left the group
        assert await nothing_in(layer, channel)

    run(directory, test, expiry=0.05)


def test_groups(directory: str) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        channels = [await layer.new_channel() for _ in range(3)]
        for channel in channels:
            await layer.group_add("group", channel)
            await layer.group_add("group", channel)
        await layer.group_discard("group", channels[2])
        await layer.group_discard("group", "never-added")
        await layer.group_send("group", HELLO)
        for channel in channels[:2]:
            assert await layer.receive(channel) == HELLO
        for channel in channels:
            assert await nothing_in(layer, channel)
        assert not layer._channels

    run(directory, test)


def test_a_channel_leaves_its_group_after_a_time(directory: str) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        await layer.group_add("group", "a")
        await layer.group_send("group", HELLO)
        assert await nothing_in(layer, "a")

    run(directory, test, group_expiry=0)


def test_a_full_channel_of_a_group_holds_up_no_other(directory: str) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        for channel in ("full", "other"):
            await layer.group_add("group", channel)
        for n in range(3):
            await layer.send("full", {"n": n})
        await layer.group_send("group", HELLO)
        assert await layer.receive("other") == HELLO
        assert [await layer.receive("full") for _ in range(3)] == [{"n": n} for n in range(3)]
        assert await nothing_in(layer, "full")

    run(directory, test)


def test_flush(directory: str) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        await layer.group_add("group", "a")
        await layer.send("a", HELLO)
        waiting = asyncio.create_task(layer.receive("b"))
        await asyncio.sleep(0)
        await layer.flush()
        await layer.group_send("group", HELLO)
        assert await nothing_in(layer, "a")
        await layer.send("b", HELLO)
        assert await waiting == HELLO

    run(directory, test)


def test_a_cancelled_receive_loses_nothing(directory: str) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        cancelled, other = asyncio.create_task(layer.receive("a")), asyncio.create_task(layer.receive("a"))
        await asyncio.sleep(0)
        await layer.send("a", HELLO)  # it wakes up the first one
        cancelled.cancel()
        assert await other == HELLO
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert not layer._channels

    run(directory, test)


def test_each_loop_may_use_it(directory: str) -> None:
    """As async_to_sync() does: a loop for each call."""
    layer = MsgdChannelLayer(directory)
    asyncio.run(layer.send("a", HELLO))
    assert asyncio.run(layer.receive("a")) == HELLO
    asyncio.run(layer.close())


# Between processes


def _serve(channel: Channel, directory: str) -> None:
    async def body() -> None:
        layer = MsgdChannelLayer(directory, capacity=3)
        mine = await layer.new_channel()
        await layer.group_add("group", mine)
        channel.send(mine)
        while True:
            message = await layer.receive(mine)
            if "reply" in message:
                await layer.send(message["reply"], {"from": mine, **message})
            elif "forget" in message:
                await layer.flush()

    asyncio.run(body())


@pytest.fixture
def workers(directory: str) -> Iterator[list[str]]:
    """The channels of two other processes, which answer."""
    children = [Child(lambda channel: _serve(channel, directory)) for _ in range(2)]
    yield [child.hear() for child in children]
    for child in children:
        child.kill()


def test_processes_talk(directory: str, workers: list[str]) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        mine = await layer.new_channel()
        for worker in workers:
            await layer.send(worker, {"reply": mine, "bytes": b"\xff"})
            assert await layer.receive(mine) == {"from": worker, "reply": mine, "bytes": b"\xff"}
        await layer.group_send("group", {"reply": mine})
        assert {(await layer.receive(mine))["from"] for _ in workers} == set(workers)

    run(directory, test)


def test_channels_of_other_processes_join_and_leave_groups(directory: str, workers: list[str]) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        mine = await layer.new_channel()
        await layer.group_add("new", workers[0])
        await layer.group_send("new", {"reply": mine})
        assert (await layer.receive(mine))["from"] == workers[0]
        await layer.group_discard("group", workers[0])
        await layer.group_send("group", {"reply": mine})
        assert (await layer.receive(mine))["from"] == workers[1]
        await layer.send(workers[0], {"reply": mine, "n": 1})
        assert (await layer.receive(mine))["n"] == 1

    run(directory, test)


def test_flush_reaches_all_processes(directory: str, workers: list[str]) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        mine = await layer.new_channel()
        await layer.group_add("group", mine)
        await layer.send(workers[0], {"forget": True})
        while layer._groups:
            await asyncio.sleep(0.001)
        await layer.group_send("group", {"reply": mine})
        await layer.send(workers[1], {"reply": mine, "n": 1})
        assert (await layer.receive(mine))["n"] == 1

    run(directory, test)


def test_a_forked_child_has_channels_of_its_own(directory: str) -> None:
    """As where a server has preloaded the application: each message comes once."""
    layer = MsgdChannelLayer(directory)
    asyncio.run(layer.send("parent", HELLO))

    def serve(channel: Channel) -> None:
        async def body() -> None:
            mine = await layer.new_channel()
            channel.send(mine)
            channel.send([await layer.receive(mine), await nothing_in(layer, mine), await nothing_in(layer, "parent")])

        asyncio.run(body())

    with Child(serve) as child:
        asyncio.run(layer.send(child.hear(), HELLO))
        assert child.hear() == [HELLO, True, True]
    asyncio.run(layer.close())


# Plain channels, as runworker has them


def _serve_plain(channel: Channel, directory: str, number: int) -> None:
    async def body() -> None:
        layer = MsgdChannelLayer(directory)
        channel.send("begun")
        while True:
            message = await layer.receive("thumbnails")
            await layer.send(message["reply"], {"by": number, "n": message["n"]})

    asyncio.run(body())


def test_a_plain_channel_is_shared_by_those_that_receive_from_it(directory: str) -> None:
    async def test(layer: MsgdChannelLayer) -> None:
        mine = await layer.new_channel()
        await layer.send("thumbnails", {"reply": mine, "n": 0})  # before there is anybody
        with Child(lambda channel: _serve_plain(channel, directory, 1)) as first:
            assert await layer.receive(mine) == {"by": 1, "n": 0}
            with Child(lambda channel: _serve_plain(channel, directory, 2)):
                by: set[int] = set()
                numbers: list[int] = []
                while by != {1, 2}:
                    numbers.append(len(numbers))
                    await layer.send("thumbnails", {"reply": mine, "n": numbers[-1]})
                    answer = await layer.receive(mine)
                    assert answer["n"] == numbers[-1]
                    by.add(answer["by"])
                first.kill()
                await layer.group_add("group", "thumbnails")
                await layer.group_send("group", {"reply": mine, "n": -1})
                assert await layer.receive(mine) == {"by": 2, "n": -1}

    run(directory, test)


WORKER = """
import os
import django
from channels.consumer import SyncConsumer
from channels.routing import ChannelNameRouter, ProtocolTypeRouter
from asgiref.sync import async_to_sync

class Thumbnails(SyncConsumer):
    def make(self, message):
        async_to_sync(self.channel_layer.send)(message["reply"], {"made": message["n"]})

application = ProtocolTypeRouter({"channel": ChannelNameRouter({"thumbnails": Thumbnails.as_asgi()})})
"""
SETTINGS = """
INSTALLED_APPS = ["channels"]
ASGI_APPLICATION = "site_of_test.application"
CHANNEL_LAYERS = {"default": {"BACKEND": "msgd.integrations.channels.MsgdChannelLayer", "CONFIG": {"directory": %r}}}
"""


def test_runworker(directory: str, scratch: Path) -> None:
    """Django's own command, in a process of its own; killed, and started again."""
    (scratch / "site_of_test.py").write_text(WORKER)
    (scratch / "settings_of_test.py").write_text(SETTINGS % directory)
    paths = os.pathsep.join((TREE, str(scratch)))
    environment = os.environ | {"PYTHONPATH": paths, "DJANGO_SETTINGS_MODULE": "settings_of_test"}

    async def test(layer: MsgdChannelLayer) -> None:
        mine = await layer.new_channel()
        for numbers in (range(3), range(3, 6)):
            for number in numbers:
                await layer.send("thumbnails", {"type": "make", "reply": mine, "n": number})
            command = [sys.executable, "-m", "django", "runworker", "thumbnails"]
            with subprocess.Popen(command, env=environment) as worker:
                try:
                    assert [(await layer.receive(mine))["made"] for _ in numbers] == list(numbers)
                finally:
                    worker.kill()

    run(directory, test)
