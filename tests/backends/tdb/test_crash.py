# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""kill -9 at any instant, and a full disk: other processes are not held up, and their messages arrive."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import resource
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from msgd import Config, Message, Messaging, MsgdError, NoSuchProcess, QueueFull, ServerID, TransportError
from msgd.backends.tdb import libtdb, messages_file
from msgd.backends.tdb.backend import TdbBackend
from msgd.wire.tdb_record import SPACE_CHANGING, SPACE_KEY, queue_key
from tests.backends.conftest import MakeConfig, StartPeer
from tests.backends.tdb.conftest import MODES, TDB_MAGIC, needs_tdb_tools
from tests.support.disk import fill_disk, small_disk
from tests.support.harness import (
    PATIENCE,
    TEXT,
    Channel,
    Child,
    Peer,
    Session,
    clean_up,
    close,
    send_many,
    take_data,
    wait_until_asleep,
)
from tests.support.machine_time import MachineTime

NUMBER = struct.Struct("=I")
CLOCK = MachineTime()

STORM = int(os.environ.get("MSGD_STORM", "1"))
"""Multiplies the number of kills."""


@pytest.fixture
def machine_time() -> Iterator[MachineTime]:
    """The clock runs as long as the test, in its peers as well; so this must be the first fixture of a test."""
    with CLOCK:
        yield CLOCK


@pytest.fixture
def log(scratch: Path) -> Iterator[Path]:
    """The log file of this process and of the processes that it starts from now on."""
    path, logger = scratch / "log", logging.getLogger("msgd")
    handler, level = logging.FileHandler(path), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield path
    logger.setLevel(level)
    logger.removeHandler(handler)
    handler.close()


def backend(messaging: Messaging) -> TdbBackend:
    one = messaging._endpoint.backend
    assert isinstance(one, TdbBackend)
    return one


# A lock whose owner is killed


def lock_everything(session: Session, key: bytes | None) -> None:
    """Take the lock over the whole file and keep it; with a key, be in the middle of writing that record."""
    database = backend(session.messaging)._file.tdb
    database.lock_all()
    if key is not None:
        database.store(key, b"torn"[:2])
    session.kept.append(database)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("writing", [False, True])
def test_owner_of_the_lock_over_the_file_is_killed(
    machine_time: MachineTime, make_config: MakeConfig, start: StartPeer, mode: str, writing: bool
) -> None:
    """The processes that wait for the lock continue, and none of their messages is lost."""
    config = make_config(**MODES[mode])
    sender, receiver, owner = start(config), start(config), start(config)
    sender.call(send_many, receiver.server_id, [b"before"])
    owner.call(lock_everything, b"PID/1\0" if writing else None)
    receiver.begin(take_data, 2)
    sender.begin(send_many, receiver.server_id, [b"after"])
    wait_until_waiting(sender)
    wait_until_waiting(receiver)
    killed = machine_time.now()
    owner.kill()
    assert receiver.hear() == [b"before", b"after"]
    assert sender.hear() is None
    assert machine_time.since(killed) < 1
    with Messaging(config) as messaging:
        messaging.clean_up()  # opening the endpoint has done so before, unless it was checking others
        assert not os.path.exists(f"{config.lock_directory}/msg.lock/{owner.pid}")


def wait_until_waiting(peer: Peer) -> None:
    """Wait until the peer has read its command and sleeps in the kernel; the lock is the only thing it can wait for."""
    deadline = time.monotonic() + PATIENCE
    while is_unread(peer.channel):
        assert time.monotonic() < deadline
        os.sched_yield()
    wait_until_asleep(peer.pid)


def is_unread(channel: Channel) -> bool:
    """Whether the other end has not read everything that we have sent."""
    return any(fcntl.ioctl(channel.fileno(), termios.TIOCOUTQ, bytes(4)))


def lock_chain(session: Session, key: bytes) -> bool:
    """Take the lock of one key's chain, as a receiver does; return whether only that chain is locked."""
    chains = backend(session.messaging)._file.chains
    assert not chains.of(key).acquire()
    session.kept.append(chains)
    return chains.are_single


@pytest.mark.parametrize("mode", MODES)
def test_owner_of_a_chains_lock_is_killed(
    machine_time: MachineTime, make_config: MakeConfig, start: StartPeer, mode: str
) -> None:
    """The chain of the receiver's record: sender and receiver wait for it; processes that use other chains do not."""
    config = make_config(**MODES[mode])
    sender, receiver, owner, *bystanders = (start(config) for _ in range(3 + 4))
    sender.call(send_many, receiver.server_id, [b"before"])
    assert owner.call(lock_chain, b"PID/%d\0" % receiver.pid)
    receiver.begin(take_data, 2)
    sender.begin(send_many, receiver.server_id, [b"after"])
    wait_until_waiting(sender)
    wait_until_waiting(receiver)
    for bystander in bystanders:
        bystander.begin(send_many, bystander.server_id, [b"goes on"])
    assert wait(
        [bystander.channel for bystander in bystanders], PATIENCE
    )  # by chance, some may be in that chain, but not all
    killed = machine_time.now()
    owner.kill()
    assert receiver.hear() == [b"before", b"after"]
    assert sender.hear() is None
    assert machine_time.since(killed) < 1


# Storms


def shower(session: Session, others: list[ServerID], seed: int) -> None:
    """Send to all others, read, and clean up after the dead, until killed."""
    moments = random.Random(seed)
    while True:
        if moments.random() < 0.2:
            session.messaging.clean_up()
        for dst in others:
            with contextlib.suppress(MsgdError):
                for _ in range(moments.choice((1, 3, 50, 1000))):
                    session.messaging.send(dst, TEXT, b"." * int(moments.paretovariate(0.8)))
        for _ in range(moments.choice((0, 3, 30))):
            session.messaging.send_all_many([(TEXT, b".")] * 16)
        session.messaging.dispatch(0)
        session.messages.clear()


def exchange(session: Session, dst: ServerID, number: int) -> float:
    """Exchange numbered messages with one partner, in windows; return the longest pause, in CLOCK's seconds."""
    messaging = session.messaging
    got = 0

    def take(message: Message) -> None:
        nonlocal got
        if message.src.pid == dst.pid:
            assert NUMBER.unpack_from(message.data)[0] == got
            got += 1

    messaging.deregister(TEXT)
    messaging.register(TEXT, take)
    sent, longest, last = 0, 0.0, CLOCK.now()
    while got < number or sent < number:
        before = got
        while sent < number and sent < got + 200:
            messaging.send(dst, TEXT, NUMBER.pack(sent).ljust(4 + sent % 90, b"."), timeout=PATIENCE)
            sent += 1
        if got < number:
            messaging.dispatch(PATIENCE)
        longest = max(longest, CLOCK.since(last))
        if got > before:
            last = CLOCK.now()
        assert longest < PATIENCE
    return longest


@needs_tdb_tools
@pytest.mark.parametrize("mode", MODES)
def test_storm_of_kills(
    machine_time: MachineTime,
    log: Path,
    make_config: MakeConfig,
    start: StartPeer,
    mode: str,
) -> None:
    """Two pairs exchange messages.  Other processes send to them and to each other, clean up, and are killed at random.

    If one is killed while it changes free space, the next process that changes it rebuilds the list.
    """
    config = make_config(**MODES[mode], send_queue_messages=3000)
    pairs = [start(config) for _ in range(4)]
    number = 4000 if mode == "mutexes" else 1000
    moments = random.Random(7)
    victims: list[Peer] = []
    kills = 0
    begin_exchange(pairs, number)
    while kills < STORM * 15 or not all(peer.channel.poll() for peer in pairs):
        if all(peer.channel.poll() for peer in pairs):
            end_exchange(pairs)
            begin_exchange(pairs, number)
        if len(victims) == 3:
            victim = victims.pop(moments.randrange(3))
            victim.kill()
            kills += 1
        victims.append(Peer(config))
        others = [peer.server_id for peer in (*pairs, *victims)]
        victims[-1].begin(shower, others, kills)
        moment = time.monotonic() + moments.uniform(0, 0.02)
        while time.monotonic() < moment and not all(peer.channel.poll() for peer in pairs):
            os.sched_yield()
    end_exchange(pairs)
    for peer in (*victims, *pairs[2:]):
        peer.kill()
    pairs[0].call(clean_up)
    keys = pairs[0].call(all_keys)
    living = {pairs[0].pid, pairs[1].pid}
    assert {int(key.rstrip(b"\0").split(b"/")[1]) for key in keys} == living
    pairs[0].begin(exchange, pairs[1].server_id, number)
    pairs[1].begin(exchange, pairs[0].server_id, number)
    end_exchange(pairs[:2])
    assert pairs[0].call(is_whole)
    assert "messages.tdb was damaged" not in log.read_text(), "the file was damaged"


def is_whole(session: Session) -> bool:
    """Whether tdbtool finds the file whole, after its free space has been changed once more."""
    one = backend(session.messaging)
    with one._file.changing_space():
        pass
    found = subprocess.run(
        ["tdbtool", f"{session.config.lock_directory}/messages.tdb", "check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "Database integrity is OK" in found.stdout


def begin_exchange(pairs: list[Peer], number: int) -> None:
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        pairs[one].begin(exchange, pairs[other].server_id, number)


def end_exchange(pairs: list[Peer]) -> None:
    for peer in pairs:
        assert peer.hear() < 5, "seconds without a message, on a busy machine"


def all_keys(session: Session) -> list[bytes]:
    with backend(session.messaging)._file.all_keys() as keys:
        return keys


def test_clean_up_leaves_the_living_alone(messaging: Messaging, start: StartPeer) -> None:
    """Messages from a dead process to a living one stay, also in segments; messages to the dead are removed."""
    receiver, sender, dead = start(), start(), start()
    texts = [b"%d" % number for number in range(5000)]
    for dst in (receiver, dead):
        sender.call(send_many, dst.server_id, texts)
    dead.kill()
    sender.kill()
    assert sorted(messaging.clean_up()) == sorted((dead.pid, sender.pid))
    assert messaging.pending(dead.pid) == 0
    assert messaging.pending(receiver.pid) == 5000
    assert receiver.call(take_data, 5000) == texts


def test_clean_up_while_others_start_and_end(make_config: MakeConfig, start: StartPeer) -> None:
    """Two processes clean up while short-lived ones receive: nothing that belongs to the living is removed."""
    config = make_config()
    cleaners = [start(), start()]
    sender = start()
    for cleaner in cleaners:
        cleaner.begin(clean_up_many, 300)
    for _ in range(20):
        with Peer(config) as receiver:
            sender.call(send_many, receiver.server_id, [b"%d" % number for number in range(700)])
            assert receiver.call(take_data, 700) == [b"%d" % number for number in range(700)]
    for cleaner in cleaners:
        assert cleaner.hear() is None


def clean_up_many(session: Session, number: int) -> None:
    for _ in range(number):
        session.messaging.clean_up()


def scribble(config: Config, key: bytes) -> None:
    """Damage the head of a key's record."""
    path = Path(config.lock_directory) / "messages.tdb"
    with open(path, "rb+") as file:
        content = file.read()
        place = content.index(TDB_MAGIC + key)
        file.seek(place)
        file.write(b"\xff" * 4)


def room_of(config: Config, key: bytes) -> int:
    """Bytes that a record has for its key and its value; libtdb adds less than a hundred."""
    content = (Path(config.lock_directory) / "messages.tdb").read_bytes()
    chains, base = struct.unpack_from("=I", content, 36)[0], struct.unpack_from("=I", content, 64)[0]
    for place in struct.unpack_from(f"={chains}I", content, base + 172):
        while place:
            following, length = struct.unpack_from("=2I", content, base + place)
            if content.startswith(key, base + place + 24):
                return int(length)
            place = following
    raise AssertionError("no such record")


@pytest.mark.parametrize("who_finds", ["sender", "receiver"])
def test_damage_in_the_file_is_repaired(config: Config, start: StartPeer, who_finds: str) -> None:
    """What cannot be read any more is lost; the rest is kept, and everybody continues.

    A child does the damage: closing the file a second time drops the locks of a process that has it open.
    """
    receiver, sender, other = start(), start(), start()
    sender.call(send_many, receiver.server_id, [b"lost"])
    sender.call(send_many, other.server_id, [b"kept"])
    with Child(lambda channel: scribble(config, b"PID/%d\0" % receiver.pid)) as child:
        assert child.wait() == 0
    if who_finds == "receiver":
        assert receiver.call(dispatch_once) == 0
    sender.call(send_many, receiver.server_id, [b"%d" % number for number in range(3000)])
    assert room_of(config, queue_key(receiver.pid)) > messages_file.ROOM, "appends outgrow the record"
    assert receiver.call(take_data, 3000) == [b"%d" % number for number in range(3000)]
    sender.call(send_many, other.server_id, [b"after"])
    assert other.call(take_data, 1) in ([b"kept"], [b"after"]), "kept, unless it was in the same chain"


def lead_in_a_circle(session: Session, keys: tuple[bytes, bytes]) -> None:
    """Make each of two records the next one in the other's chain."""
    file = backend(session.messaging)._file
    fd = file.fd
    content = os.pread(fd, os.fstat(fd).st_size, 0)
    base = int.from_bytes(content[64:68], "little")
    one, other = (content.index(TDB_MAGIC + key) - 20 for key in keys)
    os.pwrite(fd, struct.pack("=I", other - base), one)
    os.pwrite(fd, struct.pack("=I", one - base), other)


@pytest.mark.parametrize("who_finds", ["a newcomer", "one who uses it"])
def test_chain_that_leads_in_a_circle(log: Path, start: StartPeer, who_finds: str) -> None:
    """The repair ends, and is logged."""
    one, other, sender = start(), start(), start()
    for receiver in (one, other):
        sender.call(send_many, receiver.server_id, [b"kept"])
    sender.call(lead_in_a_circle, (queue_key(one.pid), queue_key(other.pid)))
    sender.call(find_damage, who_finds == "a newcomer")
    assert "rebuilt with 3 queues" in log.read_text()
    for receiver in (one, other):
        sender.call(send_many, receiver.server_id, [b"after"])
        assert receiver.call(take_data, 2) == [b"kept", b"after"]


def find_damage(session: Session, in_free_space: bool) -> None:
    file = backend(session.messaging)._file

    def change_space() -> None:
        file.tdb.delete(SPACE_KEY)
        with file.changing_space():
            pass

    if in_free_space:
        file.repairing(change_space)  # by chance, the mark can be in a damaged chain itself
    else:
        file.repair(RuntimeError(libtdb.CORRUPT, "as libtdb says"))


def find_no_descriptor(session: Session) -> str:
    """Send so that the free list must be rebuilt, while no descriptor is left; the error, if any."""
    file = backend(session.messaging)._file
    file.tdb.store(SPACE_KEY, SPACE_CHANGING)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = [int(name) for name in os.listdir("/proc/self/fd")]
    kept = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(used) + 1, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                kept.append(os.dup(0))
        send_many(session, session.messaging.server_id, [bytes(60_000)])
    except TransportError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in kept:
            os.close(fd)
    return ""


def test_free_list_is_rebuilt_without_descriptors(start: StartPeer) -> None:
    one = start()
    one.call(send_many, one.server_id, [b"first"])
    assert one.call(find_no_descriptor) == ""
    assert one.call(take_data, 2) == [b"first", bytes(60_000)]


def begin_to_change_space(session: Session, place: int, length: int) -> None:
    """Stop in the middle of it, with `length` bytes at `place`, which belong to others' records, in the free list.

    The list looks like this if libtdb was killed while it joined two free records, and the joint one was used later.
    """
    file = backend(session.messaging)._file
    changing = file.changing_space()
    changing.__enter__()
    session.kept.append(changing)
    fd = file.fd
    base = int.from_bytes(os.pread(fd, 4, 64), "little")
    free_list = base + 168
    first = os.pread(fd, 4, free_list)
    os.pwrite(fd, first + struct.pack("=5I", length - 24, 0, 0, 0, 0xD9FEE666), place)
    os.pwrite(fd, struct.pack("=I", place - base), free_list)


@pytest.mark.parametrize("mode", MODES)
def test_killed_while_changing_the_free_space(make_config: MakeConfig, start: StartPeer, mode: str, log: Path) -> None:
    """No process takes space from a free list that may contain the space of records."""
    config = make_config(**MODES[mode])
    one, other, owner, sender = (start(config) for _ in range(4))
    for receiver in (one, other):
        sender.call(send_many, receiver.server_id, [b"kept"])
    content = (Path(config.lock_directory) / "messages.tdb").read_bytes()
    place = min(content.index(TDB_MAGIC + b"PID/%d\0" % peer.pid) for peer in (one, other))
    owner.call(begin_to_change_space, place + 2000, messages_file.ROOM * 3 // 2)
    owner.kill()
    newcomers = [start(config) for _ in range(3)]
    texts = [b"%d" % number for number in range(3000)]
    for receiver in (one, other, *newcomers):
        sender.call(send_many, receiver.server_id, texts)
    for receiver in (one, other):
        assert receiver.call(take_data, 3001) == [b"kept", *texts]
    for receiver in newcomers:
        assert receiver.call(take_data, 3000) == texts
    assert log.read_text().count("list of free space has been rebuilt") == 1
    assert "messages.tdb was damaged" not in log.read_text()


def dispatch_once(session: Session) -> int:
    return session.messaging.dispatch()


# A full disk


@pytest.fixture
def disk(scratch: Path) -> Iterator[Path]:
    """A file system with room for a few thousand messages."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    with small_disk(scratch, 16 << 20) as disk:
        yield disk


def send_until_full(session: Session, dst: ServerID, sizes: list[int], prefix: bytes) -> tuple[list[bytes], str]:
    """Send until the disk is full; return what was accepted, and the error."""
    accepted: list[bytes] = []
    refused = 0
    line = ""
    for number in range(1_000_000):
        text = b"%b%d " % (prefix, number) + b"." * sizes[number % len(sizes)]
        try:
            session.messaging.send(dst, TEXT, text)
            accepted.append(text)
        except TransportError as error:
            line = str(error)
            refused += 1
            if refused == 20:
                break
    return accepted, line


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [[5], [5, 900, 50, 20_000, 0, 60_000]], ids=["small", "mixed"])
def test_full_disk(make_config: MakeConfig, disk: Path, mode: str, sizes: list[int]) -> None:
    """What was accepted arrives; what was refused got a clear error; with room again, everything continues."""
    config = make_config(lock_directory=str(disk / "lock"), send_queue_messages=10_000_000, **MODES[mode])
    with Peer(config) as receiver, Peer(config) as sender, Peer(config) as other:
        sender.call(send_many, receiver.server_id, [b"first"])
        ballast = fill_disk(disk)
        accepted, line = sender.call(send_until_full, receiver.server_id, sizes, b"a")
        assert "file system full" in line
        others, _ = other.call(send_until_full, receiver.server_id, sizes, b"b")
        data = receiver.call(take_data, 1 + len(accepted) + len(others))
        assert [one for one in data if one[:1] != b"b"] == [b"first", *accepted]
        assert [one for one in data if one[:1] == b"b"] == others
        ballast.unlink()
        sender.call(send_many, receiver.server_id, [b"room again"] * 3000)
        assert receiver.call(take_data, 3000) == [b"room again"] * 3000
        assert receiver.call(close) == 0


def test_opening_on_a_full_disk(make_config: MakeConfig, disk: Path) -> None:
    """Whatever step fails, the error is clear; then, in the same process, opening succeeds."""
    config = make_config(lock_directory=str(disk / "lock"))
    with Peer(make_config(lock_directory=config.lock_directory)):
        pass
    (Path(config.lock_directory) / "messages.tdb").unlink()
    ballast = fill_disk(disk)
    outcomes = []
    for _ in range(400):
        try:
            with Messaging(config):
                break
        except MsgdError as error:
            outcomes.append(str(error))
            with open(ballast, "rb+") as file:
                file.truncate(os.fstat(file.fileno()).st_size - 16384)
    assert 2 <= len(outcomes) < 400
    assert all("No space left" in line or "full" in line for line in outcomes), set(outcomes)
    with Messaging(config) as messaging:
        seen: list[Any] = []
        messaging.register(TEXT, seen.append)
        messaging.send(messaging.server_id, TEXT)
        assert messaging.dispatch() == 1


# Bystanders


def test_receiver_killed_while_many_wait_for_room(make_config: MakeConfig, start: StartPeer) -> None:
    config = make_config(send_queue_messages=20)
    receiver, senders = start(config), [start(config) for _ in range(4)]
    for sender in senders:
        sender.call(fill, receiver.server_id)
        sender.begin(send_waiting, receiver.server_id)
    receiver.kill()
    for sender in senders:
        assert sender.hear() == "NoSuchProcess"


def fill(session: Session, dst: ServerID) -> None:
    with contextlib.suppress(QueueFull):
        while True:
            session.messaging.send(dst, TEXT)


def send_waiting(session: Session, dst: ServerID) -> str:
    try:
        session.messaging.send(dst, TEXT, timeout=10 * PATIENCE)
    except NoSuchProcess as error:
        return type(error).__name__
    return "sent"
