# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Redis: PUBLISH and SUBSCRIBE with redis-py, through a redis-server started for the benchmark."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgd.bench.exchange import Load, Tally, exchange
from msgd.bench.peers.base import START_TIMEOUT, PythonPeer
from msgd.bench.results import Outcome
from msgd.bench.workers import RunFailed, Team

_PING, _PONG = "ping", "pong"
_READY = b"eady to accept connections"
"""What the server logs once it listens; the first letter differs between versions."""


class Redis(PythonPeer):
    """Publishes pings in one channel and pongs in another."""

    name = "redis"
    module = "redis"
    package = "redis"
    note = "PUBLISH and SUBSCRIBE through a redis-server on a Unix socket"

    def missing(self) -> str:
        return super().missing() or ("" if shutil.which("redis-server") else "redis-server is not installed")

    def run(self, team: Team, directory: Path, load: Load) -> Outcome:
        without_storage = ("--save", "", "--appendonly", "no", "--dir", os.fspath(directory))
        command = ["redis-server", "--port", "0", "--unixsocket", _socket(directory), *without_storage]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        ) as server:
            try:
                assert server.stdout is not None
                _await_ready(server.stdout.fileno())
                return self.measure(team, directory, load, (server.pid,)).outcome()
            finally:
                server.kill()

    def serve(self, directory: Path, ready: Callable[[], None]) -> None:
        client, subscription = _connect(directory, _PING)
        ready()
        for message in subscription.listen():
            client.publish(_PONG, self.answer(message["data"]))

    def ping(self, directory: Path, load: Load) -> Tally:
        client, subscription = _connect(directory, _PONG)

        def send(data: bytes) -> None:
            client.publish(_PING, data)

        def receive() -> int:
            return 0 if subscription.get_message(timeout=load.patience) is None else 1

        return exchange(send, receive, load)


def _socket(directory: Path) -> str:
    return os.fspath(directory / "redis.sock")


def _await_ready(output: int) -> None:
    poll = select.poll()
    poll.register(output, select.POLLIN)
    output_so_far = b""
    while poll.poll(START_TIMEOUT * 1000) and (more := os.read(output, 4096)):
        output_so_far += more
        if _READY in output_so_far:
            return
    raise RunFailed(f"redis-server did not start: {output_so_far.decode(errors='replace').strip()}")


def _connect(directory: Path, channel: str) -> tuple[Any, Any]:
    """Return a client and its subscription to the channel, once the server has confirmed it."""
    import redis

    client = redis.Redis(unix_socket_path=_socket(directory))
    subscription = client.pubsub()
    subscription.subscribe(channel)
    for message in subscription.listen():
        if message["type"] == "subscribe":
            break
    return client, subscription
