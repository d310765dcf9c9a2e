# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The processes of a storm: survivors are stopped but never killed, victims are killed at any instant.

Survivors send numbered messages to each other and to the victims that they have heard of, until they are told to come
to rest.  Victims send numbered messages to the survivors and others to victims; they take and give up names, clean up
after the dead, and some leave in an orderly way before they are killed.

An error of send() is right only for a reason: NoSuchProcess if the destination is a victim, QueueFull always (nobody
reads while it is stopped), TransportError while the disk is full.  With tdb TransportError is also right where no
descriptors are left: a destination that is in segments is not closed to make room for others (destinations.py).
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import mmap
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from msgd import Config, Message, Messaging, MsgdError, NoSuchProcess, QueueFull, ServerID, TransportError
from tests.storm.books import HEAD, Books, text
from tests.support.harness import Channel

NUMBERED = 0xF200
CHAFF = 0xF201

DESCRIPTORS = 128
"""How many a survivor may have: fewer than it needs to keep everything that it uses for the others open."""

_SPECIMEN_EVERY = 250
"""One message in so many carries a descriptor, if the messaging type carries any."""
_ACQUAINTANCES = 8


class Word(IntEnum):
    """What a survivor tells the storm, and is told, by a word of shared memory."""

    TURNS = 0
    HEARD = 1
    HEARD_BYTES = 2
    SENT_BYTES = 3
    """Of what it has sent to survivors, a message before it is accepted; and of what it, a survivor, has heard."""
    REFUSED = 4
    DESCRIPTORS = 5
    STOP = 6
    """1: it shall stop itself."""


class Board:
    """Words that the processes of a storm share: a row for each that lives, and the number of changes of the disk.

    The survivors' rows are the first.  A victim gets the row of the one that it replaces.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._words = memoryview(mmap.mmap(-1, (1 + rows * len(Word)) * 8)).cast("Q")

    def __len__(self) -> int:
        return self._rows

    @property
    def disk_changes(self) -> int:
        """Odd while the disk is full."""
        return self._words[0]

    @disk_changes.setter
    def disk_changes(self, number: int) -> None:
        self._words[0] = number

    def disk_was_full(self, changes: int) -> bool:
        """Whether it is full, or has been since there were so many changes."""
        return changes % 2 == 1 or self.disk_changes != changes

    def get(self, row: int, word: Word) -> int:
        return self._words[1 + row * len(Word) + word]

    def put(self, row: int, word: Word, value: int) -> None:
        self._words[1 + row * len(Word) + word] = value

    def add(self, row: int, word: Word, value: int) -> None:
        """For the one process that writes this word."""
        self._words[1 + row * len(Word) + word] += value

    def total(self, word: Word) -> int:
        return sum(self.get(row, word) for row in range(len(self)))


class World(NamedTuple):
    """What all processes of a storm have in common."""

    config: Config
    board: Board
    carries_fds: bool
    may_lack_descriptors: bool


class Leaving(NamedTuple):
    """What a victim that leaves in an orderly way says: its books are closed, and all of it was delivered."""

    server_id: ServerID
    sent: dict[ServerID, int]


class Resting(NamedTuple):
    """A survivor's last words."""

    faults: list[str]
    drops: dict[str, int]
    before: list[str]
    after: list[str]
    """Its descriptors before the storm and after it, by what they are of."""


class Member:
    """What survivors and victims can do."""

    def __init__(self, world: World, row: int, others: Sequence[ServerID], chance: random.Random) -> None:
        self.world = world
        self.row = row
        self.others = others
        self.chance = chance
        self.messaging = Messaging(world.config)
        self.books = Books(self.messaging.server_id)
        self.refused = 0
        self.messaging.register(NUMBERED, self.hear)
        self.messaging.register(CHAFF, lambda message: None)

    def hear(self, message: Message) -> None:
        self.books.note(message)
        if message.fds:
            expected = message.data[: HEAD.size]
            if os.pread(message.fds[0], HEAD.size, 0) != expected:
                self.books.faults.append(f"{message.src}: a message has come with another one's descriptor")

    @contextlib.contextmanager
    def something_may_lack(self) -> Iterator[None]:
        """TransportError is right if the disk was full at any moment of the block; with tdb, also for descriptors."""
        before = self.world.board.disk_changes
        try:
            yield
        except TransportError as error:
            cause = error.__cause__
            no_descriptors = isinstance(cause, OSError) and cause.errno == errno.EMFILE
            if not ((no_descriptors and self.world.may_lack_descriptors) or self.world.board.disk_was_full(before)):
                raise
            self.refused += 1

    def send(self, dst: ServerID, *, may_be_dead: bool = False) -> bool:
        """Send the next numbered message; whether it was accepted."""
        number = self.books.sent[dst]
        data = text(number, dst)
        self.count(dst, len(data))
        accepted = False
        try:
            accepted = self._send(dst, number, data, may_be_dead)
        finally:
            if not accepted:
                self.count(dst, -len(data))
        return accepted

    def count(self, dst: ServerID, size: int) -> None:
        """Count bytes that are sent to a survivor."""
        if dst in self.others:
            self.world.board.add(self.row, Word.SENT_BYTES, size)

    def _send(self, dst: ServerID, number: int, data: bytes, may_be_dead: bool) -> bool:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.something_may_lack())
            fds = []
            if self.world.carries_fds and number % _SPECIMEN_EVERY == 1:
                fds.append(specimen := os.memfd_create("specimen"))
                stack.callback(os.close, specimen)
                os.pwrite(specimen, data[: HEAD.size], 0)
            try:
                self.messaging.send(dst, NUMBERED, data, fds=fds)
            except QueueFull:
                self.refused += 1
                return False
            except NoSuchProcess:
                if not may_be_dead:
                    raise
                return False
            self.books.sent[dst] += 1
            return True
        return False

    def dispatch(self, timeout: float = 0) -> None:
        with self.something_may_lack():
            self.messaging.dispatch(timeout)


class Survivor(Member):
    """Never killed."""

    def __init__(self, world: World, row: int, chance: random.Random) -> None:
        super().__init__(world, row, (), chance)
        self.known: list[ServerID] = []
        """Victims that it has heard of lately; some are dead."""

    def hear(self, message: Message) -> None:
        super().hear(message)
        board = self.world.board
        board.add(self.row, Word.HEARD, 1)
        board.add(self.row, Word.HEARD_BYTES, len(message.data))
        if message.src not in self.others and message.src not in self.known:
            self.known = [*self.known[1 - _ACQUAINTANCES :], message.src]

    def turn(self) -> None:
        """Send to some, and handle what has come."""
        for _ in range(3):
            dst = self.chance.choice(self.others)
            for _ in range(self.chance.choice((1, 3, 30))):
                if not self.send(dst):
                    break
        for victim in self.known[-2:]:
            self.send(victim, may_be_dead=True)
        self.dispatch(0.01)

    def tell(self) -> None:
        """Say how it is, and stop itself if it shall."""
        board = self.world.board
        board.add(self.row, Word.TURNS, 1)
        board.put(self.row, Word.REFUSED, self.refused)
        board.put(self.row, Word.DESCRIPTORS, len(os.listdir("/proc/self/fd")))
        if self.books.faults:
            raise AssertionError("\n".join(self.books.faults))
        if board.get(self.row, Word.STOP):
            board.put(self.row, Word.STOP, 0)
            os.kill(os.getpid(), signal.SIGSTOP)

    def exchange(self, heard: Mapping[ServerID, int]) -> None:
        """Send a message to each other survivor, and wait until each has sent one more than had been heard."""
        for dst in self.others:
            while not self.send(dst):
                self.dispatch(0.01)
        self.await_true(lambda: all(self.books.heard[other] > heard.get(other, 0) for other in self.others))

    def await_true(self, is_so: Callable[[], bool]) -> None:
        """Dispatch until it is so."""
        while not is_so():
            self.dispatch(1)
            self.tell()


def descriptors() -> list[str]:
    """This process's descriptors, by what each is of."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(found)


def survive(channel: Channel, world: World, row: int) -> None:
    """A survivor.  It is told: who the others are; to come to rest; what it must have heard of each; to end."""
    faulthandler.register(signal.SIGUSR2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    me = Survivor(world, row, random.Random(row))
    channel.send(me.messaging.server_id)
    me.others = channel.recv()
    me.messaging.add_name("survivor")  # names.tdb stays open from now on
    me.exchange({})
    before = descriptors()
    channel.send(None)
    while not channel.poll():
        me.turn()
        me.tell()
    channel.recv()
    channel.send(dict(me.books.sent))
    me.await_true(channel.poll)
    due: dict[ServerID, int] = channel.recv()
    me.await_true(lambda: all(me.books.heard[src] >= number for src, number in due.items()))
    missing = [f"{src}: {me.books.heard[src]} instead of {number}" for src, number in due.items()
               if me.books.heard[src] != number]  # fmt: skip
    me.await_true(lambda: not me.messaging.statistics().queued_messages)
    channel.send(None)
    me.await_true(channel.poll)
    channel.recv()
    me.messaging.clean_up()
    me.exchange(due)
    channel.send(Resting(missing + me.books.faults, dict(me.messaging.statistics().drops), before, descriptors()))
    me.await_true(channel.poll)
    channel.recv()
    me.messaging.clean_up()
    channel.send(None)
    channel.recv()


def suffer(
    channel: Channel, world: World, row: int, survivors: Sequence[ServerID], victims: Sequence[int], seed: int
) -> None:
    """A victim.  One in four leaves before it is killed, if it is given the time."""
    chance = random.Random(seed)
    turns = chance.randrange(200) if chance.random() < 0.25 else -1
    before = world.board.disk_changes
    try:
        me = Member(world, row, survivors, chance)
    except TransportError:
        if not world.board.disk_was_full(before):
            raise
        return
    while turns:
        turns -= 1
        deed = chance.random()
        with contextlib.suppress(MsgdError):
            if deed < 0.1:
                me.messaging.clean_up()
            elif deed < 0.2:
                me.messaging.add_name(f"name{chance.randrange(5)}")
            elif deed < 0.5 and victims:
                me.messaging.send(chance.choice(victims), CHAFF, bytes(chance.randrange(3000)))
        dst = chance.choice(survivors)
        for _ in range(chance.choice((1, 5, 50))):
            if not me.send(dst):
                break
        me.dispatch()
        if me.books.faults:
            raise AssertionError("\n".join(me.books.faults))
    if me.messaging.close(5) == 0:
        channel.send(Leaving(me.books.own, dict(me.books.sent)))
