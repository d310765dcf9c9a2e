# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The lifespan, and real ASGI servers: changes are posted while their workers are killed."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import signal
from pathlib import Path

import pytest

from msgd.errors import ContextClosed
from msgd.integrations.asgi import Lifespan
from msgd.pubsub import Event, Gap, GapReason, PubSub
from tests.integrations.servers import LIMIT, PATIENT, STORM, WORKERS, await_workers, check_workers, serving, storm

APPLICATION = "tests.integrations.audited:app"
pytestmark = pytest.mark.timeout(PATIENT)
SERVERS = {
    "uvicorn": ["uvicorn", "--uds", "SOCKET", "--workers", str(WORKERS), "--limit-max-requests", LIMIT, APPLICATION],
    "hypercorn": ["hypercorn", "-b", "unix:SOCKET", "-w", str(WORKERS), "-m", "000", APPLICATION],
    "granian": [
        "granian", "--interface", "asgi", "--uds", "SOCKET", "--workers", str(WORKERS), "--respawn-failed-workers",
        APPLICATION,
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SERVERS)
def test_workers_are_complete_or_told(name: str) -> None:
    for package in ("fastapi", name):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")

    with serving(SERVERS[name], EXAMPLE="fastapi_app") as (server, auditor):
        every, turns = min(STORM // 4, 250), itertools.count()

        def disturb(number: int) -> None:
            if name == "hypercorn" or number % every:  # hypercorn ends when a worker is killed
                return
            turn = next(turns)
            is_hangup = turn % 3 == 0
            if name == "granian":  # it ends when a worker is killed within 5.5 seconds of its start, as after a SIGHUP
                await_workers(server, auditor)
                is_hangup = turn >= 2
            if is_hangup:
                os.kill(server.master(), signal.SIGHUP)
            else:
                for pid in sorted(auditor.audit())[:1]:  # while all are being replaced, nobody answers
                    os.kill(pid, signal.SIGKILL)

        check_workers(server, auditor, storm(server, range(1, STORM + 1), disturb))


def test_a_lifespan_subscribes_each_time_and_tells_what_was_before(scratch: Path) -> None:
    directory = str(scratch / "lock")
    heard: list[object] = []
    topics = Lifespan(directory)

    @topics.subscribe("a", on_gap=lambda gap: heard.append(gap))
    async def note(event: Event) -> None:
        heard.append(event.data)

    topics.on_gap(heard.append)

    async def live(data: int) -> None:
        async with topics():
            publication = await topics.publish("a", data, wait="acked")
            assert publication.is_complete

    with PubSub(directory) as other:
        asyncio.run(live(1))
        assert heard == [1]
        other.publish("a", 2)
        asyncio.run(live(3))
    before = Gap(GapReason.BEFORE)
    assert heard == [1, before, before, 3]
    with pytest.raises(ContextClosed, match="has not begun"):
        topics.pubsub  # noqa: B018


@pytest.mark.parametrize("framework", ["starlette.applications:Starlette", "litestar:Litestar"])
def test_it_is_the_lifespan_of_other_frameworks(framework: str, scratch: Path) -> None:
    module, _, name = framework.partition(":")
    make = getattr(pytest.importorskip(module, reason=f"{module} is not installed"), name)
    topics = Lifespan(scratch / "lock")
    heard: list[object] = []

    @topics.subscribe("a")
    async def note(event: Event) -> None:
        heard.append(event.data)

    application = make(lifespan=[topics]) if name == "Litestar" else make(lifespan=topics)

    async def main() -> None:
        said: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        told: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        running = asyncio.create_task(application({"type": "lifespan", "asgi": {}, "state": {}}, told.get, said.put))
        await told.put({"type": "lifespan.startup"})
        assert (await said.get())["type"] == "lifespan.startup.complete"
        assert (await topics.publish("a", 1, wait="acked")).is_complete
        await told.put({"type": "lifespan.shutdown"})
        assert (await said.get())["type"] == "lifespan.shutdown.complete"
        await running
        with pytest.raises(ContextClosed):
            await topics.publish("a", 2)

    asyncio.run(main())
    assert heard == [1]
