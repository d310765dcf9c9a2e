# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Redis: PUBLISH and SUBSCRIBE with redis-py, through a redis-server started for the benchmark."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgd.bench.exchange import Load, Tally, exchange
from msgd.bench.peers.base import PythonPeer
from msgd.bench.peers.servers import running
from msgd.bench.results import Outcome
from msgd.bench.workers import Team

_PING, _PONG = "ping", "pong"
_READY = re.compile(rb"[Rr]eady to accept connections")
"""What the server logs once it listens; the first letter differs between versions."""


class Redis(PythonPeer):
    """Publishes pings in one channel and pongs in another."""

    name = "redis"
    module = "redis"
    package = "redis"
    note = "PUBLISH and SUBSCRIBE through a redis-server on a Unix socket"

    def missing(self) -> str:
        return super().missing() or server_missing()

    def run(self, team: Team, directory: Path, load: Load) -> Outcome:
        with running_server(directory) as servers:
            return self.measure(team, directory, load, servers).outcome()

    def serve(self, directory: Path, ready: Callable[[], None]) -> None:
        client, subscription = subscribe(directory, _PING)
        ready()
        for message in subscription.listen():
            client.publish(_PONG, self.answer(message["data"]))

    def ping(self, directory: Path, load: Load) -> Tally:
        client, subscription = subscribe(directory, _PONG)

        def send(data: bytes) -> None:
            client.publish(_PING, data)

        def receive() -> int:
            return 0 if subscription.get_message(timeout=load.patience) is None else 1

        return exchange(send, receive, load)


def server_missing() -> str:
    """Return the reason why no redis-server can be started; an empty string if one can."""
    return "" if shutil.which("redis-server") else "redis-server is not installed"


@contextlib.contextmanager
def running_server(directory: Path) -> Iterator[tuple[int]]:
    """Run a redis-server on a Unix socket in this directory, and return its pid.  It keeps nothing on disk."""
    without_storage = ("--save", "", "--appendonly", "no", "--dir", os.fspath(directory))
    command = ["redis-server", "--port", "0", "--unixsocket", _socket(directory), *without_storage]
    with running(command, _READY) as (pid, _):
        yield (pid,)


def connect(directory: Path) -> Any:
    """Return a client of the server in this directory."""
    import redis

    return redis.Redis(unix_socket_path=_socket(directory))


def subscribe(directory: Path, channel: str) -> tuple[Any, Any]:
    """Return a client and its subscription to the channel, once the server has confirmed it."""
    client = connect(directory)
    subscription = client.pubsub()
    subscription.subscribe(channel)
    for message in subscription.listen():
        if message["type"] == "subscribe":
            break
    return client, subscription


def _socket(directory: Path) -> str:
    return os.fspath(directory / "redis.sock")
