# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd's own messaging types: send_all, and send_all_many for bursts, through the public API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgd.bench.broadcast.base import BroadcastLoad, PythonBroadcaster, Sent, Step
from msgd.bench.endpoints import ACK, DATA, FINAL, dispatch_until
from msgd.bench.subjects import Subject
from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.header import Message


class Msgd(PythonBroadcaster):
    """Sends the last broadcast of a round as ACK, which a listener answers, and the others as DATA."""

    module = "msgd"

    def __init__(self, subject: Subject, config: Config) -> None:
        self.name = subject.name
        self.note = subject.description
        self._subject = subject
        self._config = config

    def listen(self, directory: Path, load: BroadcastLoad, ready: Callable[[], None]) -> int:
        received = 0
        ended = False

        def count(message: Message) -> None:
            nonlocal received
            received += 1

        def end(message: Message) -> None:
            nonlocal ended
            ended = True

        with Messaging(self._subject.config(self._config, directory)) as messaging:
            messaging.register(DATA, count)
            messaging.register(ACK, count)
            messaging.register(ACK, lambda message: messaging.reply(message, ACK))
            messaging.register(FINAL, end)
            ready()
            messaging.dispatch(None)
            dispatch_until(messaging, lambda: ended, load.patience)
        return received

    def send(self, directory: Path, load: BroadcastLoad, measure: Callable[[Step], Sent]) -> Sent:
        answers = deliveries = 0

        def count_answer(message: Message) -> None:
            nonlocal answers
            answers += 1

        def step(number: int, wanted: int) -> bool:
            nonlocal deliveries
            if number == 1:
                deliveries += messaging.send_all(ACK, load.data).delivered
            elif number:
                burst = [(DATA, load.data)] * (number - 1) + [(ACK, load.data)]
                deliveries += number * messaging.send_all_many(burst).delivered
            return dispatch_until(messaging, lambda: answers >= wanted, load.patience)

        with Messaging(self._subject.config(self._config, directory)) as messaging:
            messaging.register(ACK, count_answer)
            sent = measure(step)
            messaging.send_all(FINAL)
        expected = sent.broadcasts * load.listeners
        if not sent.failure and deliveries != expected:
            return sent._replace(failure=f"send_all reported {deliveries} deliveries instead of {expected}")
        return sent
