# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""NATS: publish and subscribe with nats-py, through a nats-server started for the benchmark."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgd.bench.broadcast.base import END, BroadcastLoad, PythonBroadcaster, Sent, Step
from msgd.bench.peers.servers import running

_SUBJECT, _ANSWERS = "broadcasts", "answers"
_LISTENING = re.compile(rb"Listening for client connections on (\S+:\d+).*Server is ready", re.DOTALL)
_URL = "nats.url"


class Nats(PythonBroadcaster):
    """Publishes one subject and takes the answers in another.  nats-server has no Unix sockets: this is TCP."""

    name = "nats"
    module = "nats"
    package = "nats-py"
    note = "publish and subscribe through a nats-server over TCP"

    def missing(self) -> str:
        return super().missing() or ("" if _program() else "nats-server is not installed (Debian: nats-server)")

    @contextlib.contextmanager
    def server(self, directory: Path) -> Iterator[tuple[int]]:
        command = [str(_program()), "--addr", "127.0.0.1", "--port", "-1"]
        with running(command, _LISTENING) as (pid, found):
            (directory / _URL).write_text(f"nats://{found[1].decode()}")
            yield (pid,)

    def listen(self, directory: Path, load: BroadcastLoad, ready: Callable[[], None]) -> int:
        return asyncio.run(_listen(directory, load, ready))

    def send(self, directory: Path, load: BroadcastLoad, measure: Callable[[Step], Sent]) -> Sent:
        with asyncio.Runner() as runner:
            sender = _Sender(load)
            runner.run(sender.connect(directory))
            sent = measure(lambda number, wanted: runner.run(sender.step(number, wanted)))
            runner.run(sender.end())
        return sent


def _program() -> str | None:
    return shutil.which("nats-server", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


async def _connect(directory: Path) -> Any:
    import nats

    return await nats.connect((directory / _URL).read_text(), allow_reconnect=False)


async def _listen(directory: Path, load: BroadcastLoad, ready: Callable[[], None]) -> int:
    client = await _connect(directory)
    received = 0
    ended = asyncio.Event()

    async def hear(message: Any) -> None:
        nonlocal received
        if message.data == END:
            ended.set()
            return
        received += 1
        if received % load.window == 0:
            await client.publish(_ANSWERS, b"")

    await client.subscribe(_SUBJECT, cb=hear)
    await client.flush()  # the server has the subscription once it answers
    ready()
    await ended.wait()
    await client.close()
    return received


class _Sender:
    """The sender's connection, and the answers that have arrived on it."""

    def __init__(self, load: BroadcastLoad) -> None:
        self._load = load
        self._answers = 0
        self._answered = asyncio.Event()
        self._client: Any = None

    async def connect(self, directory: Path) -> None:
        """Connect, and subscribe to the answers."""
        self._client = await _connect(directory)
        await self._client.subscribe(_ANSWERS, cb=self._count)
        await self._client.flush()

    async def step(self, number: int, wanted: int) -> bool:
        """Do what a Step does."""
        for _ in range(number):
            await self._client.publish(_SUBJECT, self._load.data)
        try:
            async with asyncio.timeout(self._load.patience):
                while self._answers < wanted:
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            return False
        return True

    async def end(self) -> None:
        """Tell all listeners that this was the end."""
        await self._client.publish(_SUBJECT, END)
        await self._client.flush()
        await self._client.close()

    async def _count(self, message: Any) -> None:
        self._answers += 1
        self._answered.set()
