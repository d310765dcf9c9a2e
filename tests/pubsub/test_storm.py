# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A storm: publishers and subscribers are killed and started again; each survivor is complete, or told of a gap.

MSGD_STORM_SECONDS is how long it lasts, 1 by default.

A subscriber that is stopped stops itself, between two calls.  With tdb, one that is stopped at any instant may be in
the middle of a change of messages.tdb, and holds up the publishers while it is stopped (SECURITY.md, known limit 1).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from msgd import Config
from msgd.pubsub import Event, Gap, GapReason
from tests.pubsub.conftest import StartWorker
from tests.pubsub.workers import Notes, Worker, settle

SECONDS = float(os.environ.get("MSGD_STORM_SECONDS", "1"))


class Truth:
    """What there is to know: how much each publisher has to say, in a file of its own, before it publishes that."""

    def __init__(self, scratch: Path) -> None:
        self._directory = scratch / "truth"
        self._directory.mkdir(exist_ok=True)

    def write(self, number: int) -> None:
        """This process is about to publish all numbers below this one."""
        new = self._directory / f"new.{os.getpid()}"
        new.write_text(f"{number}")
        new.rename(self._directory / f"{os.getpid()}")

    def read(self) -> dict[int, int]:
        """By publisher, the number that it has written last."""
        return {int(path.name): int(path.read_text()) for path in self._directory.iterdir() if path.name.isdigit()}


class Books:
    """What a subscriber knows: the next number of each publisher, and whether it has missed one without a word.

    It reads everything once it has subscribed, and again when it is told of a gap.  What it has read may still come,
    with holes: nothing is missed by those.
    """

    def __init__(self, read: Callable[[], Mapping[int, int]]) -> None:
        self.next: dict[int, int] = {}
        self.silent: list[tuple[int, int, int]] = []
        self._read_before: dict[int, int] = {}
        self._read = read

    def note(self, event: Event) -> None:
        publisher, number = event.data
        if number < self._read_before.get(publisher, 0):
            return
        expected = self.next.get(publisher, 0)
        if number != expected:
            self.silent.append((publisher, expected, number))
        self.next[publisher] = number + 1

    def note_gap(self, gap: Gap) -> None:
        self.read_everything()

    def read_everything(self) -> None:
        self._read_before = dict(self._read())
        self.next = dict(self._read_before)


def subscriber(truth: Truth, notes: Notes) -> None:
    books = notes.others["books"] = Books(truth.read)
    notes.pubsub.subscribe("storm", books.note, on_gap=books.note_gap)
    books.read_everything()


def publisher(truth: Truth, notes: Notes) -> None:
    notes.others["number"], notes.others["truth"] = 0, truth
    notes.pubsub.start()


def blow(notes: Notes, number: int) -> int:
    """Publish so many; the number of the next one."""
    for _ in range(number):
        notes.others["truth"].write(notes.others["number"] + 1)
        notes.pubsub.publish("storm", [os.getpid(), notes.others["number"]])
        notes.others["number"] += 1
    return int(notes.others["number"])


def pause(notes: Notes) -> None:
    """Stop this process, until it is told to go on."""
    os.kill(os.getpid(), signal.SIGSTOP)


def report(notes: Notes) -> tuple[dict[int, int], list[tuple[int, int, int]]]:
    """What the books say once all has been handled."""
    settle(notes)
    books: Books = notes.others["books"]
    return books.next, books.silent


def test_survivors_are_complete_or_told(scratch: Path, config: Config, start: StartWorker) -> None:
    config = config.replace(send_queue_messages=50)
    truth = Truth(scratch)
    subscribe, publish = partial(subscriber, truth), partial(publisher, truth)
    chance = random.Random(int(os.environ.get("MSGD_STORM_SEED", "1")))
    subscribers = [start(config, first=subscribe) for _ in range(3)]
    publishers = [start(config, first=publish) for _ in range(2)]
    last: dict[int, int] = {}
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for one in publishers:
            one.begin(blow, 50)
        victim = chance.choice(["none", "publisher", "subscriber", "slow"])
        if victim == "publisher":
            chance.choice(publishers).kill()
        elif victim == "slow":
            slow = chance.choice(subscribers)
            slow.begin(pause)
            os.waitid(os.P_PID, slow.pid, os.WSTOPPED)
        for one in publishers:
            if one.status is None:
                last[one.pid] = one.hear()
        if victim == "subscriber":
            subscribers.remove(killed := chance.choice(subscribers))
            killed.kill()
            subscribers.append(start(config, first=subscribe))
        elif victim == "slow":
            slow.resume()
            slow.hear()
        dead = [one for one in publishers if one.status is not None]
        for one in dead:
            publishers.remove(one)
            last.pop(one.pid, None)
            publishers.append(start(config, first=publish))
    for one in subscribers:
        check(one, last)


def check(worker: Worker, last: dict[int, int]) -> None:
    """What it knows of the living publishers, since its last gap, is all that there was."""
    known, silent = worker.call(report)
    assert silent == []
    assert {pid: known.get(pid, last[pid]) for pid in last} == last


def test_a_storm_that_hides_a_loss_is_seen(plain_config: Config, start: StartWorker) -> None:
    """The test itself: books with a number missing and no gap are not in order."""
    books = Books(lambda: {7: 6})
    for number in (0, 1, 3):
        books.note(Event("storm", [7, number], None))  # type: ignore[arg-type]
    assert books.silent == [(7, 2, 3)]
    books.note_gap(Gap(GapReason.OVERDUE, 2))
    for number in (4, 5, 7):
        books.note(Event("storm", [7, number], None))  # type: ignore[arg-type]
    assert books.silent == [(7, 2, 3), (7, 6, 7)]


pytestmark = pytest.mark.timeout(120 + 2 * SECONDS)
