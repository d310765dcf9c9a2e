# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""pynng: a Pair of nanomsg-next-generation over ipc."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgd.bench.exchange import Load, Tally, exchange
from msgd.bench.peers.base import PythonPeer


class Nng(PythonPeer):
    """Pings over a Pair0.  It cannot send an empty message, so its second ping has one byte."""

    name = "pynng"
    module = "pynng"
    package = "pynng"
    note = "Pair0 over ipc; one byte instead of an empty message"

    def serve(self, directory: Path, ready: Callable[[], None]) -> None:
        import pynng

        with pynng.Pair0(listen=f"ipc://{directory}/pair") as pair:
            ready()
            while True:
                pair.send(self.answer(pair.recv()))

    def ping(self, directory: Path, load: Load) -> Tally:
        import pynng

        with pynng.Pair0(dial=f"ipc://{directory}/pair", block_on_dial=True) as pair:

            def take() -> int:
                pair.recv()
                return 1

            return exchange(lambda data: pair.send(data or b"\0"), take, load)
