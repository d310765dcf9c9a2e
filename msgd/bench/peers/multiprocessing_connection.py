# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""multiprocessing.connection: the standard library's message connections over AF_UNIX streams."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Client, Listener
from pathlib import Path

from msgd.bench.exchange import Load, Tally, exchange
from msgd.bench.peers.base import PythonPeer


class MultiprocessingConnection(PythonPeer):
    """Pings from a Client to a Listener with send_bytes and recv_bytes."""

    name = "multiprocessing"
    module = "multiprocessing.connection"
    note = "Connection.send_bytes"

    def serve(self, directory: Path, ready: Callable[[], None]) -> None:
        with Listener(f"{directory}/socket", family="AF_UNIX") as listener:
            ready()
            with listener.accept() as connection:
                while True:
                    connection.send_bytes(self.answer(connection.recv_bytes()))

    def ping(self, directory: Path, load: Load) -> Tally:
        with Client(f"{directory}/socket", family="AF_UNIX") as connection:

            def take() -> int:
                connection.recv_bytes()
                return 1

            return exchange(connection.send_bytes, take, load)
