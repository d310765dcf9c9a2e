# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""pyzmq: PUB and SUB over ipc; the answers go over PUSH and PULL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgd.bench.broadcast.base import END, BroadcastLoad, PythonBroadcaster, Sent, Step


class ZeroMqPublish(PythonBroadcaster):
    """Publishes without a high-water mark, so that nothing is dropped.

    The publishing socket is an XPUB: a PUB that also reports each subscription, which tells when all listeners are
    there.
    """

    name = "pyzmq"
    module = "zmq"
    package = "pyzmq"
    note = "PUB and SUB over ipc, answers over PUSH and PULL"

    def listen(self, directory: Path, load: BroadcastLoad, ready: Callable[[], None]) -> int:
        import zmq

        received = 0
        with zmq.Context() as context, context.socket(zmq.SUB) as subscription, context.socket(zmq.PUSH) as answers:
            subscription.set(zmq.RCVHWM, 0)
            subscription.connect(f"ipc://{directory}/publish")
            subscription.set(zmq.SUBSCRIBE, b"")
            answers.connect(f"ipc://{directory}/answers")
            ready()
            while subscription.recv() != END:
                received += 1
                if received % load.window == 0:
                    answers.send(b"")
        return received

    def send(self, directory: Path, load: BroadcastLoad, measure: Callable[[Step], Sent]) -> Sent:
        import zmq

        taken = 0

        def step(number: int, wanted: int) -> bool:
            nonlocal taken
            for _ in range(number):
                publish.send(load.data)
            try:
                while taken < wanted:
                    answers.recv()
                    taken += 1
            except zmq.Again:  # not within `patience`
                return False
            return True

        with zmq.Context() as context, context.socket(zmq.XPUB) as publish, context.socket(zmq.PULL) as answers:
            publish.set(zmq.SNDHWM, 0)
            publish.set(zmq.XPUB_VERBOSE, 1)
            publish.bind(f"ipc://{directory}/publish")
            answers.set(zmq.RCVTIMEO, int(1000 * load.patience))
            answers.bind(f"ipc://{directory}/answers")
            for _ in range(load.listeners):
                publish.recv()
            sent = measure(step)
            publish.send(END)
        return sent
