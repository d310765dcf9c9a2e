# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Measure what it costs to send to a sleeping receiver, and to drain its queue, by depth.  This is not a test; run it:

    build/venv/bin/python -m tests.backends.tdb.measure_depth [--rounds N] [depth ...]

At a depth of 100,000 a message may cost three times as much as at 1,000.  Each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

from msgd import Config, ServerID
from tests.backends.tdb.conftest import MODES
from tests.support.harness import TEXT, Peer, Session

DATA = b"1234567"


def send(session: Session, dst: ServerID, number: int) -> float:
    """Seconds a message."""
    messaging_send = session.messaging.send
    before = time.perf_counter()
    for _ in range(number):
        messaging_send(dst, TEXT, DATA)
    return (time.perf_counter() - before) / number


def drain(session: Session, number: int) -> float:
    """Seconds a message."""
    seen = session.messages
    dispatch = session.messaging.dispatch
    before = time.perf_counter()
    while len(seen) < number:
        dispatch(None)
    elapsed = time.perf_counter() - before
    assert all(message.data == DATA for message in seen)
    seen.clear()
    return elapsed / number


def measure(config: Config, depth: int, rounds: int) -> tuple[float, float]:
    """Medians of sending and draining."""
    sends, drains = [], []
    for _ in range(rounds):
        with Peer(config) as receiver, Peer(config) as sender:
            sends.append(sender.call(send, receiver.server_id, depth))
            drains.append(receiver.call(drain, depth))
    return statistics.median(sends), statistics.median(drains)


def main(say: Callable[[str], object] = print) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("depths", type=int, nargs="*", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    for mode, overrides in MODES.items():
        first: tuple[float, float] | None = None
        for depth in options.depths:
            with tempfile.TemporaryDirectory(prefix="m", dir="/tmp") as scratch:
                config = Config(
                    lock_directory=f"{scratch}/lock",
                    messaging_type="tdb",
                    send_queue_messages=10_000_000,
                    **overrides,
                )
                sending, draining = measure(config, depth, options.rounds)
            first = first or (sending, draining)
            say(
                f"{mode:8} {depth:8} deep: send {sending * 1e6:6.2f} us ({sending / first[0]:4.2f} times the first),"
                f" drain {draining * 1e6:6.2f} us ({draining / first[1]:4.2f} times)"
            )


if __name__ == "__main__":
    main()
