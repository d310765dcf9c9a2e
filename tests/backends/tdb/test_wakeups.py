# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The hunt for a lost wake-up: senders in bursts, a receiver that sleeps after every drain, and no timeout anywhere.

A sender waits for the answer to each burst.  So if one wake-up is lost, all processes sleep for ever, and the test
fails when its patience ends.  MSGD_HUNT=50 sends 50 times as many messages as the suite's few hundred thousand.
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import struct

import pytest

from msgd import Message, ServerID
from msgd.backends import spin
from msgd.backends.tdb.words import EPOCH
from tests.backends.conftest import MakeConfig, StartPeer
from tests.backends.tdb.conftest import MODES
from tests.backends.tdb.test_crash import backend
from tests.support.harness import PATIENCE, TEXT, Session, send_many

HUNT = int(os.environ.get("MSGD_HUNT", "1"))
NUMBER = struct.Struct("=I?")
SENDERS = 4


class Count:
    """Answers the last message of each burst, and checks the order of each sender's messages."""

    def __init__(self, session: Session) -> None:
        self.messaging = session.messaging
        self.next: dict[int, int] = {}
        self.total = 0
        self.messaging.deregister(TEXT)
        self.messaging.register(TEXT, self.take)

    def take(self, message: Message) -> None:
        number, last = NUMBER.unpack_from(message.data)
        assert number == self.next.get(message.src.pid, 0)
        self.next[message.src.pid] = number + 1
        self.total += 1
        if last:
            self.messaging.reply(message, TEXT)


def by_dispatch(session: Session, number: int) -> dict[str, int]:
    count = Count(session)
    while count.total < number:
        session.messaging.dispatch(None)
    return dict(session.messaging.statistics().drops)


def by_dispatch_that_sleeps_at_once(session: Session, number: int) -> dict[str, int]:
    """Without spinning before each sleep."""
    spin._FEW = spin._MANY = 0
    return by_dispatch(session, number)


def by_select(session: Session, number: int) -> dict[str, int]:
    count = Count(session)
    fd = session.messaging.fileno()
    while count.total < number:
        select.select([fd], [], [])
        session.messaging.dispatch()
    return dict(session.messaging.statistics().drops)


def by_epoll(session: Session, number: int) -> dict[str, int]:
    """Edge-triggered, so every write into the pipe counts."""
    count = Count(session)
    with select.epoll() as epoll:
        epoll.register(session.messaging.fileno(), select.EPOLLIN | select.EPOLLET)
        while count.total < number:
            epoll.poll()
            session.messaging.dispatch()
    return dict(session.messaging.statistics().drops)


def by_select_between_idle_dispatches(session: Session, number: int) -> dict[str, int]:
    """Most dispatches find nothing, and leave fileno() prepared as it is."""
    count = Count(session)
    fd, moments = session.messaging.fileno(), random.Random(number)
    while count.total < number:
        for _ in range(moments.randrange(6)):
            session.messaging.dispatch()
        if count.total < number:
            select.select([fd], [], [])
        session.messaging.dispatch()
    return dict(session.messaging.statistics().drops)


def by_asyncio(session: Session, number: int) -> dict[str, int]:
    count = Count(session)

    async def main() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def dispatch() -> None:
            session.messaging.dispatch()
            if count.total == number:
                done.set()

        loop.add_reader(session.messaging.fileno(), dispatch)
        await done.wait()
        loop.remove_reader(session.messaging.fileno())

    asyncio.run(main())
    return dict(session.messaging.statistics().drops)


WAYS = {
    "dispatch": by_dispatch,
    "dispatch at once": by_dispatch_that_sleeps_at_once,
    "select": by_select,
    "select, idle": by_select_between_idle_dispatches,
    "epoll": by_epoll,
    "asyncio": by_asyncio,
}


def send_bursts(session: Session, dst: ServerID, number: int, seed: int, longest: int) -> dict[str, int]:
    """Send `number` messages in bursts of random length, and wait for an answer after each burst."""
    messaging, sizes = session.messaging, random.Random(seed)
    answers = 0

    def take(message: Message) -> None:
        nonlocal answers
        answers += 1

    messaging.deregister(TEXT)
    messaging.register(TEXT, take)
    sent = bursts = 0
    while sent < number:
        burst = min(sizes.randint(1, longest), number - sent)
        for place in range(burst):
            messaging.send(dst, TEXT, NUMBER.pack(sent, place == burst - 1), timeout=PATIENCE)
            sent += 1
        bursts += 1
        while answers < bursts:
            messaging.dispatch(None)
    return dict(messaging.statistics().drops)


@pytest.mark.timeout(120 * HUNT)
@pytest.mark.parametrize("longest", [1, 4, 300])
@pytest.mark.parametrize("way", WAYS)
def test_no_wake_up_is_lost(make_config: MakeConfig, start: StartPeer, way: str, longest: int) -> None:
    each = HUNT * {1: 1000, 4: 3000, 300: 15000}[longest]
    hunt(make_config, start, "mutexes", way, longest, each)


@pytest.mark.timeout(120 * HUNT)
@pytest.mark.parametrize("mode", ["fcntl", "nommap"])
def test_no_wake_up_is_lost_without_mutexes(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    hunt(make_config, start, mode, "dispatch at once", 4, HUNT * 1500)


@pytest.mark.timeout(120 * HUNT)
def test_no_wake_up_is_lost_in_deep_queues(make_config: MakeConfig, start: StartPeer) -> None:
    """Bursts that continue in segments, and a bound at which the senders sleep as well."""
    hunt(make_config, start, "mutexes", "dispatch at once", 3000, HUNT * 15000, send_queue_messages=1000)


def hunt(
    make_config: MakeConfig, start: StartPeer, mode: str, way: str, longest: int, each: int, **overrides: int
) -> None:
    config = make_config(**MODES[mode], **overrides)
    receiver, senders = start(config), [start(config) for _ in range(SENDERS)]
    receiver.begin(WAYS[way], SENDERS * each)
    for seed, sender in enumerate(senders):
        sender.begin(send_bursts, receiver.server_id, each, seed, longest)
    patience = [sender.channel for sender in senders]
    for sender, channel in zip(senders, patience, strict=True):
        assert channel.poll(100 * HUNT), "everybody sleeps"
        assert sender.hear() == {}
    assert receiver.hear() == {}


def test_an_idle_dispatch_prepares_nothing(start: StartPeer) -> None:
    """The program watches fileno(): the epoch is announced until something comes."""
    peer, sender = start(), start()
    before = peer.call(epoch_of_a_watched_one)
    assert peer.call(epoch_after_idle_dispatches) == before
    sender.call(send_many, peer.server_id, [b"a"])
    assert peer.call(take_by_select) == [b"a"]
    after = peer.call(epoch_after_idle_dispatches)
    assert after != before
    sender.call(send_many, peer.server_id, [b"b"])
    assert peer.call(take_by_select) == [b"b"]


def epoch_of_a_watched_one(session: Session) -> int:
    session.messaging.fileno()
    return epoch(session)


def epoch_after_idle_dispatches(session: Session) -> int:
    for _ in range(3):
        assert not session.messaging.dispatch()
    return epoch(session)


def epoch(session: Session) -> int:
    return int(backend(session.messaging)._words[EPOCH])


def take_by_select(session: Session) -> list[bytes]:
    while not session.messages:
        assert select.select([session.messaging.fileno()], [], [], PATIENCE)[0]
        session.messaging.dispatch()
    taken = [message.data for message in session.messages]
    session.messages.clear()
    return taken
