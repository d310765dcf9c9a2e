# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd's topics: publish with wait="acked", through the public API of msgd.pubsub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgd.bench.broadcast.base import BroadcastLoad, PythonBroadcaster, Sent, Step
from msgd.bench.subjects import Subject
from msgd.config import Config
from msgd.pubsub import Event, PubSub

_TOPIC, _END = "broadcasts", "end"


class MsgdTopics(PythonBroadcaster):
    """Publishes the last of a round with wait="acked", and the others in one call before it.

    So a round waits for its own answers; with a longer window the others wait for those to the round before.
    """

    module = "msgd.pubsub"

    def __init__(self, subject: Subject, config: Config) -> None:
        self.name = subject.name
        self.note = f"msgd.pubsub over {subject.description}, acknowledged"
        self._subject = subject
        self._config = config

    def listen(self, directory: Path, load: BroadcastLoad, ready: Callable[[], None]) -> int:
        received = 0
        ended = False

        def count(event: Event) -> None:
            nonlocal received
            received += 1

        def end(event: Event) -> None:
            nonlocal ended
            ended = True

        with PubSub(self._subject.config(self._config, directory), background=False) as pubsub:
            pubsub.subscribe(_TOPIC, count)
            pubsub.subscribe(_END, end)
            ready()
            while not ended:
                pubsub.dispatch(None)
        return received

    def send(self, directory: Path, load: BroadcastLoad, measure: Callable[[Step], Sent]) -> Sent:
        def step(number: int, wanted: int) -> bool:
            if number > 1:
                pubsub.publish_many([(_TOPIC, load.data)] * (number - 1))
            if not number:
                return True
            return len(pubsub.publish(_TOPIC, load.data, wait="acked", timeout=load.patience).acked) == load.listeners

        with PubSub(self._subject.config(self._config, directory), background=False) as pubsub:
            sent = measure(step)
            pubsub.publish(_END)
        return sent
