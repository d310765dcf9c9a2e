# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Redis: PUBLISH and SUBSCRIBE with redis-py on a Unix socket; the answers go into a list."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from msgd.bench.broadcast.base import END, BroadcastLoad, PythonBroadcaster, Sent, Step
from msgd.bench.peers import redis_server

_CHANNEL, _ANSWERS = "broadcasts", "answers"


class RedisPublish(PythonBroadcaster):
    """Publishes with a call for each broadcast.  A listener answers with LPUSH, and the sender waits with BLPOP."""

    name = "redis"
    module = "redis"
    package = "redis"
    note = "PUBLISH and SUBSCRIBE on a Unix socket, answers with LPUSH"

    def missing(self) -> str:
        return super().missing() or redis_server.server_missing()

    def server(self, directory: Path) -> contextlib.AbstractContextManager[tuple[int]]:
        return redis_server.running_server(directory)

    def listen(self, directory: Path, load: BroadcastLoad, ready: Callable[[], None]) -> int:
        received = 0
        client, subscription = redis_server.subscribe(directory, _CHANNEL)
        ready()
        for message in subscription.listen():
            if message["data"] == END:
                break
            received += 1
            if received % load.window == 0:
                client.lpush(_ANSWERS, b"")
        return received

    def send(self, directory: Path, load: BroadcastLoad, measure: Callable[[Step], Sent]) -> Sent:
        client = redis_server.connect(directory)
        taken = 0

        def step(number: int, wanted: int) -> bool:
            nonlocal taken
            for _ in range(number):
                client.publish(_CHANNEL, load.data)
            while taken < wanted:
                if client.blpop(_ANSWERS, load.patience) is None:
                    return False
                taken += 1
                if taken < wanted:
                    taken += len(client.lpop(_ANSWERS, wanted - taken) or ())
            return True

        sent = measure(step)
        client.publish(_CHANNEL, END)
        return sent
