# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Who is not let in: its connection stays open for a moment, or what it writes would kill it before it has read why.

The gateway is in this process, and its loop turns when the test lets it: meanwhile no moment passes.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from msgd import Config
from msgd.daemon.children import Children
from msgd.daemon.gateway import lingering
from msgd.daemon.gateway.accepting import Gateway
from msgd.daemon.listener import Listener
from msgd.daemon.logs import STDERR, Log
from msgd.daemon.loop import Loop
from msgd.daemon.settings import Settings


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(path)
    return client


def test_so_many_connections_stay_open(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "_LINGER", 1000.0)
    config = Config(lock_directory=str(scratch), max_clients=1)
    path = str(scratch / "gateway")
    changes: list[str] = []
    children = Children(lambda: None, lambda: changes.append("a child more, or less"))
    children.adopt(os.getpid(), os.pidfd_open(os.getpid()), os.geteuid())
    with Loop() as loop, Log(STDERR) as log, ExitStack() as stack:
        settings = Settings(config, lambda: config, log, lambda _: STDERR)
        full = Gateway(loop, settings, Listener.bind("msgd:listen", path, 0o600), children, None, None)
        first, *others = (stack.enter_context(connect(path)) for _ in range(lingering._MOST_LINGERING + 1))
        loop.on_readable(others[-1].fileno(), loop.stop)
        loop.run()
        for client in others:
            client.sendall(b'{"op": "hello"}\n')
        with pytest.raises(BrokenPipeError):  # the oldest had to make room
            first.sendall(b'{"op": "hello"}\n')
        for client in (first, *others):
            assert json.loads(client.recv(1000))["error"] == "too-many"
        full.close()
        with pytest.raises(BrokenPipeError):
            others[-1].sendall(b'{"op": "hello"}\n')
        assert len(changes) == 1, "nothing is forked for them"
    children.release(os.getpid())
