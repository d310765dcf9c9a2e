# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 9: exceptions of signals' handlers, at any moment of a receiver's work, lose and double no message.

A handler of messages that such an exception interrupts has had its message.  So the one here is a function in C, which
is not interrupted; what it has not seen is missing.  tests/backends/tdb/test_interrupted.py does this with tdb, where a
signal's handler may not dispatch.

Before Python 3.12, the garbage collector lets signals' handlers into the middle of calls into C, if a callback or a
finalizer is written in Python.  There is one here, as in each process in which hypothesis has run.
"""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Mapping
from types import FrameType

import pytest

from msgd import Message, ServerID
from msgd.native import native
from tests.backends.conftest import StartPeer
from tests.backends.variants import CARRYING_FDS, Variant
from tests.support.harness import PATIENCE, TEXT, Session, drain, open_fds

MESSAGING_TYPES = ("dgram", "stream")

INTERRUPTIONS = int(os.environ.get("MSGD_ALARMS", "200"))
"""How many exceptions the receiver has before the sender ends."""

SIZES = {"short": (0, 20), "mixed": (0, 20, 700, 3000, 70_000, 200_000)}


class Alarm(BaseException):
    """What the signal's handler raises."""


def collected(phase: str, info: Mapping[str, int]) -> None:
    """A callback of the garbage collector that is written in Python."""


def receive_under_alarms(session: Session, seed: int, dispatches: bool) -> tuple[list[bytes], Mapping[str, int]]:
    """Receive until a message `end`, while alarms come some 900 times a second and raise, or dispatch and raise.

    Tells the sender once there have been INTERRUPTIONS.  Returns what has come, and what was dropped.
    """
    messaging, moments = session.messaging, random.Random(seed)
    seen: list[Message] = []
    interrupted, is_told, inside = 0, False, False

    def on_alarm(number: int, frame: FrameType | None) -> None:
        nonlocal inside
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(50e-6, 2.2e-3))
        if inside:
            if dispatches and moments.random() < 0.5:
                messaging.dispatch(0)
            if moments.random() < 0.8:
                inside = False
                raise Alarm

    gc.callbacks[:] = [] if dispatches and native is None else [collected]  # msgd/backends/at_once.py, rule 4
    gc.set_threshold(50)
    messaging.deregister(TEXT)
    registered = messaging.register(TEXT, seen.append)
    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 1e-3)
    while not seen or seen[-1].data != b"end":
        try:
            inside = True
            messaging.dispatch(0)
            inside = False
        except Alarm:
            interrupted += 1
            if interrupted >= INTERRUPTIONS and seen and not is_told:
                is_told = True
                messaging.send(seen[0].src, TEXT)
        except BaseException:
            inside = False  # so that no alarm comes in between when this is told
            raise
    inside = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    messaging.dispatch(0)
    registered.close()
    del gc.callbacks[:]
    return [message.data for message in seen], messaging.statistics().drops


def send_until_told(session: Session, dst: ServerID, sizes: tuple[int, ...], seed: int, carries_fds: bool) -> int:
    """Send numbered messages until a message comes, then `end`; the number of them.

    It keeps few of them queued, so that the receiver is not busy with what waits for it for long after it has told.
    """
    messaging, choice, number = session.messaging, random.Random(seed), 0
    with open(os.devnull) as null:
        while not session.messages:
            fds = (null.fileno(),) if carries_fds and choice.random() < 0.05 else ()
            data = b"%d " % number + bytes([number % 256]) * choice.choice(sizes)
            messaging.send(dst, TEXT, data, fds=fds, timeout=PATIENCE)
            number += 1
            if number % 16 == 0:
                drain(messaging)
            messaging.dispatch(0)
    messaging.send(dst, TEXT, b"end", timeout=PATIENCE)
    drain(messaging)
    return number


def number_of_copies(session: Session) -> int:
    """How many descriptors are what the sender attaches to its messages."""
    return sum(one.endswith(" /dev/null") for one in open_fds())


def check(seen: list[bytes], number: int, sizes: tuple[int, ...], drops: Mapping[str, int]) -> None:
    """Each message once, in order and undamaged."""
    assert drops == {}
    texts = [data.partition(b" ") for data in seen if data != b"end"]
    assert [int(text) for text, _, _ in texts] == list(range(number))
    for text, _, rest in texts:
        assert len(rest) in sizes
        assert rest == bytes([int(text) % 256]) * len(rest)


@pytest.mark.parametrize("dispatches", [False, True], ids=lambda one: "dispatch and raise" if one else "raise")
@pytest.mark.parametrize("kind", SIZES)
def test_alarms(start: StartPeer, variant: Variant, kind: str, dispatches: bool) -> None:
    receiver, sender = start(), start()
    carries_fds = kind == "mixed" and variant.messaging_type in CARRYING_FDS
    before = receiver.call(number_of_copies)
    receiver.begin(receive_under_alarms, 1, dispatches)
    sender.begin(send_until_told, receiver.server_id, SIZES[kind], 2, carries_fds)
    seen, drops = receiver.hear()
    number = sender.hear()
    check(seen, number, SIZES[kind], drops)
    assert receiver.call(number_of_copies) == before
