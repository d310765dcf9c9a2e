# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A signal handler that raises (KeyboardInterrupt, an alarm) at any step: no lock is left held, no message is lost."""

from __future__ import annotations

import contextlib
import random
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import tdb

from msgd import Message, Messaging, NoSuchProcess, QueueFull, ServerID
from msgd.backends.tdb.backend import TdbBackend
from msgd.backends.tdb.chain_lock import ChainLock, ChainLocks
from msgd.backends.tdb.words import AWAKE, EPOCH
from tests.backends.conftest import MakeConfig, StartPeer
from tests.support.harness import PATIENCE, TEXT, Session, close, send_many, take_data, wait_until_asleep


class Alarm(BaseException):
    """The handler raises this; nothing else catches it."""


class Interrupting:
    """A tdb, or its locks: the signal arrives as soon as the named method has done its work.

    If `early`, it arrives just before that method begins.
    """

    def __init__(self, real: tdb.Tdb | ChainLocks, name: str, early: bool = False) -> None:
        self._real = real
        self._name = name
        self._early = early
        self.armed = True

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        return self._interrupted(method) if name == self._name else method

    def __contains__(self, key: bytes) -> bool:
        return key in self._real  # type: ignore[operator]  # a tdb

    def of(self, key: bytes) -> ChainLock:
        lock = self._real.of(key)
        return lock._replace(**{self._name: self._interrupted(getattr(lock, self._name))})

    def _interrupted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def interrupted(*arguments: Any) -> Any:
            comes, self.armed = self.armed, False
            if comes and self._early:
                signal.raise_signal(signal.SIGALRM)
            result = method(*arguments)
            if comes:
                signal.raise_signal(signal.SIGALRM)
            return result

        return interrupted


@pytest.fixture
def alarm() -> Iterator[None]:
    def handler(number: int, frame: FrameType | None) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def backend(messaging: Messaging) -> TdbBackend:
    one = messaging._endpoint.backend
    assert isinstance(one, TdbBackend)
    return one


def interrupt(one: TdbBackend, step: str) -> Callable[[], None]:
    """Interrupt the next of the named steps; call the result to undo that.

    The twin takes the messages: a signal's handler never runs in the middle of the compiled one.
    """
    inbox = one._inbox
    real, chains, chain, own = inbox._tdb, one._file.chains, inbox._chain, inbox._own
    inbox._own = None
    if step in ChainLock._fields:
        one._file.chains = Interrupting(chains, step)  # type: ignore[assignment]
        inbox._chain = one._file.chains.of(inbox._key)
    else:
        inbox._tdb = Interrupting(real, step)

    def undo() -> None:
        inbox._tdb, one._file.chains, inbox._chain, inbox._own = real, chains, chain, own

    return undo


@pytest.mark.parametrize("step", ["acquire", "get", "store", "release"])
@pytest.mark.parametrize("number", [1, 2000])
def test_while_messages_are_taken(alarm: None, messaging: Messaging, start: StartPeer, step: str, number: int) -> None:
    """Messages in PID/<pid> and in segments."""
    sender = start()
    seen: list[bytes] = []
    messaging.register(TEXT, lambda message: seen.append(message.data))
    texts = [b"%d" % one for one in range(number)]
    sender.call(send_many, messaging.server_id, texts)
    while len(seen) < number:
        undo = interrupt(backend(messaging), step)
        with contextlib.suppress(Alarm):
            messaging.dispatch(0)
        undo()
        sender.call(send_many, sender.server_id, [b"others go on"])
        messaging.dispatch(0)
    assert seen == texts


@pytest.mark.parametrize("before", [1, 2], ids=["with a look at the depth", "without"])
def test_between_append_and_signal(alarm: None, messaging: Messaging, start: StartPeer, before: int) -> None:
    """The message is in the file, so the receiver is woken up; and no lock is left held."""
    receiver = start()
    for _ in range(before):
        messaging.send(receiver.server_id, TEXT, b"before")
        assert receiver.call(take_data, 1) == [b"before"]
    receiver.begin(take_data, 1)
    one = backend(messaging)
    outgoing = one._destinations.open[receiver.pid]
    while not outgoing.destination.words[EPOCH]:
        pass
    outgoing._tdb = Interrupting(one._file.tdb, "append")
    messaging._endpoint.plain_sender = None  # a signal's handler never runs in the middle of the compiled twin
    with pytest.raises(Alarm):
        messaging.send(receiver.server_id, TEXT, b"here")
    outgoing._tdb = one._file.tdb
    assert receiver.hear() == [b"here"]
    assert (outgoing.quota > 0) == (before > 1)


def test_just_before_the_signal(messaging: Messaging, start: StartPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver sleeps and has not heard of the message; the next message wakes it up."""
    receiver = start()
    messaging.send(receiver.server_id, TEXT, b"before")
    assert receiver.call(take_data, 1) == [b"before"]
    receiver.begin(take_data, 2)
    destination = backend(messaging)._destinations.open[receiver.pid].destination
    while destination.words[EPOCH] in (AWAKE, destination.signalled_epoch):
        pass
    wait_until_asleep(receiver.pid)

    def interrupted(self: object) -> bool:
        raise Alarm

    monkeypatch.setattr(destination, "_seen_alive", time.monotonic() + PATIENCE)
    monkeypatch.setattr(type(destination), "holds_lock", interrupted)
    messaging._endpoint.plain_sender = None  # a signal's handler never runs in the middle of the compiled twin
    with pytest.raises(Alarm):
        messaging.send(receiver.server_id, TEXT, b"in the dark")
    monkeypatch.undo()
    messaging.send(receiver.server_id, TEXT, b"after")
    assert receiver.hear() == [b"in the dark", b"after"]


def take_under_alarms(session: Session, last: bytes, seed: int) -> tuple[list[bytes], int]:
    """Read up to the message `last` while a timer interrupts anywhere; return what arrived, and the interruptions."""
    moments = random.Random(seed)
    seen: list[bytes] = []
    interrupted = 0
    inside = False

    def handler(signal_number: int, frame: FrameType | None) -> None:
        nonlocal inside
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(50e-6, 2e-3))
        if inside:
            inside = False
            raise Alarm

    session.messaging.deregister(TEXT)
    session.messaging.register(TEXT, lambda message: seen.append(message.data))
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 1e-3)
    while last not in seen[-1:]:
        try:
            inside = True
            session.messaging.dispatch(0)
            inside = False
        except Alarm:
            interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return seen, interrupted


def send_until(session: Session, dst: ServerID, number: int) -> None:
    """Send numbered messages, then `end` until the receiver leaves."""
    for one in range(number):
        session.messaging.send(dst, TEXT, b"%d" % one, timeout=PATIENCE)
    with contextlib.suppress(NoSuchProcess):
        while True:
            session.messaging.send(dst, TEXT, b"end", timeout=PATIENCE)


def test_at_random_moments(start: StartPeer) -> None:
    """An interruption can cost the one message whose handler it interrupts; nothing arrives twice or out of order."""
    receiver, sender = start(), start()
    number = 30_000
    sender.begin(send_until, receiver.server_id, number)
    seen, interrupted = receiver.call(take_under_alarms, b"end", 1)
    receiver.call(close)
    assert sender.hear() is None
    numbers = [int(one) for one in seen if one != b"end"]
    assert numbers == sorted(set(numbers))
    assert number - len(numbers) <= interrupted
    assert len(numbers) > number // 2


def receive_under_alarms(session: Session, number: int, seed: int) -> tuple[list[bytes], int]:
    """Let the backend hand up `number` messages while alarms raise at any moment; return them and the interruptions."""
    one, moments = backend(session.messaging), random.Random(seed)
    handed_up: deque[Message] = deque()
    interrupted = 0
    inside = False

    def handler(signal_number: int, frame: FrameType | None) -> None:
        nonlocal inside
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(20e-6, 1e-3))
        if inside:
            inside = False
            raise Alarm

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 1e-3)
    while len(handed_up) < number:
        try:
            inside = True
            one.receive(handed_up.append)
            inside = False
        except Alarm:
            interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    one.receive(handed_up.append)
    return [message.data for message in handed_up], interrupted


@pytest.mark.parametrize("seed", [1, 2])
def test_backend_hands_up_everything_that_it_has_taken(make_config: MakeConfig, start: StartPeer, seed: int) -> None:
    """Each message once and in order, from PID/<pid> and from segments, however often it is interrupted."""
    config = make_config(send_queue_messages=2000)
    receiver, sender = start(config), start(config)
    texts = [b"%d" % number for number in range(60_000)]
    sender.begin(send_waiting, receiver.server_id, texts)
    seen, interrupted = receiver.call(receive_under_alarms, len(texts), seed)
    assert sender.hear() is None
    assert seen == texts
    assert interrupted > 100


def send_waiting(session: Session, dst: ServerID, texts: list[bytes]) -> None:
    """Send the messages, waiting for room."""
    for text in texts:
        session.messaging.send(dst, TEXT, text, timeout=PATIENCE)


def take_up_to(session: Session, last: bytes) -> list[bytes]:
    data: list[bytes] = []
    while last not in data[-1:]:
        data += take_data(session, 1)
    return data


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("step", ["append", "store", "get"])
def test_while_messages_are_sent(alarm: None, messaging: Messaging, start: StartPeer, step: str, early: bool) -> None:
    """From PID/<pid> into segments, from one to the next, and back: only the interrupted message may be missing."""
    receiver = start()
    messaging.send(receiver.server_id, TEXT, b"first")
    one = backend(messaging)
    outgoing = one._destinations.open[receiver.pid]
    interrupting = Interrupting(one._file.tdb, step, early)
    number, interrupted = 0, set()
    for again in range(3):
        outgoing._tdb = outgoing.segments._tdb = interrupting
        for _ in range(2000):
            interrupting.armed = number % 3 > 0
            text = b"%d" % number + b"." * (number * 7 % 150)
            try:
                messaging.send(receiver.server_id, TEXT, text)
            except Alarm:
                interrupted.add(number)
            number += 1
        outgoing._tdb = outgoing.segments._tdb = one._file.tdb
        assert len(outgoing.segments.waiting) > 2
        for slot in outgoing.segments.waiting:
            assert len(one._file.tdb.get(slot.key)) <= slot.room
        last = b"last %d" % again
        messaging.send(receiver.server_id, TEXT, last)
        data = receiver.call(take_up_to, last)
        numbers = [int(text.partition(b".")[0]) for text in data[:-1] if text != b"first"]
        assert numbers == sorted(set(numbers))
        assert set(range(2000 * again, number)) - interrupted <= set(numbers)
    assert interrupted


class Slots(list[Any]):
    """A list that is interrupted as soon as an item has been added, or all have been removed."""

    def append(self, slot: Any) -> None:
        super().append(slot)
        raise Alarm

    def clear(self) -> None:
        super().clear()
        raise Alarm


def test_while_a_sender_goes_back_to_the_record(messaging: Messaging, start: StartPeer) -> None:
    """Whatever was left undone, the next message is sent as usual."""
    receiver = start()
    for number in range(1500):
        messaging.send(receiver.server_id, TEXT, b"%d" % number)
    outgoing = backend(messaging)._destinations.open[receiver.pid]
    segments, slots = outgoing.segments, outgoing.segments.slots
    assert len(receiver.call(take_data, 1500)) == 1500
    assert segments.waiting
    slots.spare = Slots(slots.spare)
    segments.waiting = Slots(segments.waiting)  # type: ignore[assignment]

    def one_by_one() -> None:
        for _ in range(1000):
            messaging.send(receiver.server_id, TEXT, b"one by one")
            assert receiver.call(take_data, 1) == [b"one by one"]

    with pytest.raises(Alarm):
        one_by_one()
    slots.spare = list(slots.spare)
    messaging.send(receiver.server_id, TEXT, b"last")
    assert receiver.call(take_data, 1) == [b"last"]
    assert outgoing.open_key == outgoing.key


def test_while_a_sender_waits_for_room(
    make_config: MakeConfig, start: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that has arrived in the meantime still makes the descriptor readable."""
    sender, full = start(), start()
    with Messaging(make_config(send_queue_messages=20)) as messaging:
        seen: list[bytes] = []
        messaging.register(TEXT, lambda message: seen.append(message.data))
        messaging.fileno()
        with contextlib.suppress(QueueFull):
            while True:
                messaging.send(full.server_id, TEXT)
        sender.call(send_many, messaging.server_id, [b"here"])
        one = backend(messaging)

        def interrupted() -> bool:
            raise Alarm

        monkeypatch.setattr(one._destinations, "some_have_room", interrupted)
        with pytest.raises(Alarm):
            messaging.send(full.server_id, TEXT, timeout=PATIENCE)
        monkeypatch.undo()
        assert select.select([messaging.fileno()], [], [], 0)[0]
        assert one._words[EPOCH], "nobody would wake it for the next"
        messaging.dispatch()
        assert seen == [b"here"]
