# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""pyzmq: a pair of PAIR sockets over ipc."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgd.bench.exchange import Load, Tally, exchange
from msgd.bench.peers.base import PythonPeer


class ZeroMq(PythonPeer):
    """Pings over a PAIR.  In each process a thread of ZeroMQ does the input and output."""

    name = "pyzmq"
    module = "zmq"
    package = "pyzmq"
    note = "PAIR over ipc"

    def serve(self, directory: Path, ready: Callable[[], None]) -> None:
        import zmq

        with zmq.Context() as context, context.socket(zmq.PAIR) as pair:
            pair.bind(f"ipc://{directory}/pair")
            ready()
            receive, send = pair.recv, pair.send
            while True:
                send(self.answer(receive()))

    def ping(self, directory: Path, load: Load) -> Tally:
        import zmq

        with zmq.Context() as context, context.socket(zmq.PAIR) as pair:
            pair.connect(f"ipc://{directory}/pair")
            receive = pair.recv

            def take() -> int:
                receive()
                return 1

            return exchange(pair.send, take, load)
