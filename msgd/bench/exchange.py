"""The loop of LOCAL-MESSAGING: bursts out, answers in, never more than a window outstanding."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from typing import NamedTuple

from msgd.bench.results import Outcome

RATE = "rate"


class Load(NamedTuple):
    """What a ping sends: for `seconds`, pairs of `text` and an empty message, at most `window` unanswered.

    `patience`: how many seconds without an answer mean that a message is lost.
    """

    seconds: float
    window: int
    text: bytes
    patience: float

    @property
    def bursts(self) -> tuple[tuple[bytes, ...], ...]:
        """What is sent at once, in turn: a pair, or with a window of 1 its two messages one after the other."""
        return ((self.text, b""),) if self.window > 1 else ((self.text,), (b"",))


class Tally(NamedTuple):
    """What a ping came to: messages sent, answers received, seconds from the first message to the last answer."""

    sent: int
    received: int
    seconds: float

    def outcome(self) -> Outcome:
        """The rate in messages and answers a second; a failure if an answer is missing."""
        missing = self.sent - self.received
        failure = f"{missing} of {self.sent} answers are missing" if missing > 0 else ""
        if missing < 0:
            failure = f"{-missing} answers more than {self.sent} pings"
        rate = (self.sent + self.received) / self.seconds
        return Outcome({} if failure else {RATE: rate}, {"sent": self.sent, "received": self.received}, failure)


def exchange(send: Callable[[bytes], object], receive: Callable[[], int], load: Load) -> Tally:
    """Ping for the load's time and wait for the last answer.

    `receive` waits for at least one answer and returns how many came; 0 means that none has for too long.
    """
    clock = time.perf_counter
    bursts = cycle(load.bursts)
    limit = load.window - len(load.bursts[0])
    sent = received = 0
    began = clock()
    end = began + load.seconds
    while clock() < end:
        while sent - received <= limit:
            for data in next(bursts):
                send(data)
                sent += 1
        got = receive()
        if not got:
            return Tally(sent, received, clock() - began)
        received += got
    while received < sent:
        got = receive()
        if not got:
            break
        received += got
    return Tally(sent, received, clock() - began)
