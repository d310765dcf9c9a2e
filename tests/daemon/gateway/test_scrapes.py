# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Scrapers that have gone before their turn.  The listener and its loop are in this process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from msgd.daemon.listener import Listener
from msgd.daemon.loop import Loop
from msgd.daemon.metrics.scrapes import Answer, Scrapes


def answer(client: socket.socket, note_request: Callable[[], None]) -> None:
    client.recv(100)
    note_request()
    client.sendall(b"answered")


def listen(family: str, scratch: Path) -> tuple[Listener, Callable[[], socket.socket]]:
    """A listener, and what connects to it."""
    if family == "unix":
        path = str(scratch / "metrics")

        def connect() -> socket.socket:
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
            return client

        return Listener.bind("msgd:metrics", path, 0o600), connect
    listener = Listener.bind_tcp("msgd:metrics", "127.0.0.1", 0)
    with socket.socket(fileno=socket.dup(listener.fileno())) as same:
        address = same.getsockname()
    return listener, lambda: socket.create_connection(address)


@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_a_scraper_that_has_gone_costs_no_process(scratch: Path, family: str) -> None:
    started: list[int] = []

    def prepare() -> Answer:
        started.append(1)
        return answer

    listener, connect = listen(family, scratch)
    with Loop() as loop, ExitStack() as stack:
        scrapes = Scrapes(loop, listener, lambda: None, prepare)
        for _ in range(500):
            connect().close()
        last = stack.enter_context(connect())
        last.sendall(b"GET")
        loop.on_readable(last.fileno(), loop.stop)
        loop.run()
        loop.on_readable(last.fileno(), None)
        assert last.recv(100) == b"answered"
        os.wait()
        scrapes.close()
    assert len(started) == 1
