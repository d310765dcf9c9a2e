# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""iceoryx2: publish and subscribe in shared memory, without a system call and without a wake-up."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgd.bench.exchange import Load, Tally, exchange
from msgd.bench.peers.base import PythonPeer
from msgd.bench.results import Outcome
from msgd.bench.workers import Team

_SHARED_MEMORY = Path("/dev/shm")
_BUFFER = 64
"""Messages that a subscriber's buffer holds.  A longer window fails instead of losing a message."""


class Iceoryx(PythonPeer):
    """Pings in one service and pongs in another.  Both processes poll without a pause: each keeps a CPU busy."""

    name = "iceoryx2"
    module = "iceoryx2"
    package = "iceoryx2"
    note = "shared memory; both processes spin on a CPU each; one byte instead of an empty message"

    def run(self, team: Team, directory: Path, load: Load) -> Outcome:
        if load.window > _BUFFER:
            return Outcome(failure=f"a window of {load.window} does not fit into a buffer of {_BUFFER}")
        try:
            return super().run(team, directory, load)
        finally:  # the processes are killed, and leave their shared memory behind
            for path in _SHARED_MEMORY.glob(f"{directory.name}-*"):
                path.unlink(missing_ok=True)

    def serve(self, directory: Path, ready: Callable[[], None]) -> None:
        node = _node(directory)
        receive, send = _receiver(node, "ping", None), _sender(node, "pong")
        ready()
        while True:
            send(self.answer(receive()))

    def ping(self, directory: Path, load: Load) -> Tally:
        node = _node(directory)
        receive, send = _receiver(node, "pong", load.patience), _sender(node, "ping")

        def take() -> int:
            try:
                receive()
            except TimeoutError:
                return 0
            return 1

        return exchange(send, take, load)


def _node(directory: Path) -> Any:
    """A node whose files lie in this directory, and whose shared memory has the directory's name as its prefix."""
    import iceoryx2 as iox

    iox.set_log_level(iox.LogLevel.Error)
    config = iox.config.default()
    config.global_cfg.prefix = iox.FileName.new(f"{directory.name}-")
    config.global_cfg.root_path = iox.Path.new(f"{directory}/")
    return iox.NodeBuilder.new().config(config).create(iox.ServiceType.Ipc)


def _service(node: Any, name: str) -> Any:
    import iceoryx2 as iox

    builder = node.service_builder(iox.ServiceName.new(name)).publish_subscribe(iox.Slice[ctypes.c_uint8])
    builder = builder.subscriber_max_buffer_size(_BUFFER).enable_safe_overflow(False)
    return builder.open_or_create()


def _sender(node: Any, name: str) -> Callable[[bytes], None]:
    import iceoryx2 as iox

    builder = _service(node, name).publisher_builder().initial_max_slice_len(_BUFFER)
    publisher = builder.allocation_strategy(iox.AllocationStrategy.PowerOfTwo).create()

    def send(data: bytes) -> None:
        sample = publisher.loan_slice_uninit(max(1, len(data)))
        ctypes.memmove(sample.payload_ptr, data, len(data))
        sample.assume_init().send()

    return send


def _receiver(node: Any, name: str, patience: float | None) -> Callable[[], bytes]:
    """Return a function that spins until a message is there, and raises TimeoutError after `patience` seconds."""
    subscriber = _service(node, name).subscriber_builder().buffer_size(_BUFFER).create()
    between_clocks = 10_000

    def receive() -> bytes:
        deadline = None if patience is None else time.monotonic() + patience
        while deadline is None or time.monotonic() < deadline:
            for _ in range(between_clocks):
                sample = subscriber.receive()
                if sample is not None:
                    data = ctypes.string_at(sample.payload_ptr, sample.payload().number_of_elements)
                    sample.delete()
                    return data
        raise TimeoutError

    return receive
