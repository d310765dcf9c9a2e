# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The chat: WebSockets of four workers talk, also after one of the workers was killed."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import pytest

from tests.integrations.servers import PATIENCE, WORKERS, Server, started

pytest.importorskip("channels", reason="channels is not installed")
pytest.importorskip("msgpack", reason="msgpack is not installed")
pytest.importorskip("websockets", reason="websockets is not installed")

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, unix_connect

Members = list[tuple[int, ClientConnection]]


def join(server: Server, opened: contextlib.ExitStack, *, workers: int) -> Members:
    """WebSockets until they are in so many workers, each with the pid of its worker."""
    members: Members = []

    def are_there() -> bool:
        connection = opened.enter_context(unix_connect(server.socket, "ws://localhost/chat"))
        members.append((int(connection.recv(PATIENCE)), connection))
        return len({pid for pid, _ in members}) == workers

    server.wait_for(are_there, f"in {workers} workers")
    return members


def all_hear(members: Members, words: list[str]) -> None:
    """Each of some says a word, and all hear all words."""
    for (_, connection), word in zip(members, words, strict=False):
        connection.send(word)
    for _, connection in members:
        assert {connection.recv(PATIENCE) for _ in words} == set(words)


def test_websockets_of_several_workers_talk() -> None:
    command: list[Any] = ["uvicorn", "--uds", "SOCKET", "--workers", str(WORKERS), "chat_app:app"]
    with started(command, {}) as server, contextlib.ExitStack() as opened:
        members = join(server, opened, workers=3)
        all_hear(members, ["one", "two"])
        killed = members[0][0]
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(ConnectionClosed):
            members[0][1].recv(PATIENCE)
        left = [one for one in members if one[0] != killed]
        all_hear(left, ["three", "four"][: len(left)])
