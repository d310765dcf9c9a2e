# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Reused pids and stale lock files: no innocent process gets a signal or another process's messages."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from msgd import Config, Messaging
from msgd.backends.tdb.backend import TdbBackend
from msgd.errors import NoSuchProcess
from msgd.presence.lock_file import LockFile
from msgd.presence.private_lock import PrivateLock
from msgd.wire.server_id import ServerID
from tests.backends.conftest import StartPeer
from tests.support.harness import (
    TEXT,
    Channel,
    Child,
    Peer,
    Session,
    chosen_pids_reason,
    dead_pid,
    is_gone,
    send_many,
    take_data,
    wait_until_asleep,
)

NO_CHOSEN_PIDS = chosen_pids_reason()
chosen_pids = pytest.mark.skipif(NO_CHOSEN_PIDS is not None, reason=str(NO_CHOSEN_PIDS))
SENDS = 10_000


def lock_path(config: Config, pid: int) -> Path:
    return Path(config.lock_directory) / "msg.lock" / str(pid)


def fall_asleep(session: Session) -> None:
    session.messaging.fileno()  # now its word EPOCH says that it sleeps


def victim(channel: Channel) -> None:
    """A process without a handler for SIGUSR1."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    channel.send("here")
    channel.recv()


def shower(messaging: Messaging, pid: int) -> None:
    """Send to the pid; no message may count as sent."""
    for _ in range(SENDS):
        with pytest.raises(NoSuchProcess):
            messaging.send(pid, TEXT, b"for somebody else")


def assert_unhurt(child: Child) -> None:
    child.tell("end")
    assert child.wait() == 0


def test_victim_without_lock_file(messaging: Messaging) -> None:
    with Child(victim) as child:
        child.hear()
        shower(messaging, child.pid)
        assert_unhurt(child)


@chosen_pids
@pytest.mark.parametrize("talked_before", [False, True])
def test_victim_with_the_pid_of_a_dead_sleeper(messaging: Messaging, peer: Peer, talked_before: bool) -> None:
    """The stale lock file says that its process sleeps and waits for a signal."""
    if talked_before:
        messaging.send(peer.server_id, TEXT, b"hello")
        assert peer.call(take_data, 1) == [b"hello"]
    peer.call(fall_asleep)
    peer.kill()
    with Child(victim, pid=peer.pid) as child:
        child.hear()
        shower(messaging, child.pid)
        assert is_gone(messaging, peer.server_id)
        assert_unhurt(child)
    assert messaging.pending(peer.pid) == 0


@chosen_pids
def test_victim_whose_lock_another_process_holds(config: Config, messaging: Messaging, peer: Peer) -> None:
    """The lock file names the victim's pid and is locked, but by another process."""
    peer.call(fall_asleep)
    peer.kill()

    def hold(channel: Channel) -> None:
        with open(lock_path(config, peer.pid), "rb+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            channel.send("held")
            channel.recv()

    with Child(hold) as holder, Child(victim, pid=peer.pid) as child:
        assert holder.hear() == "held"
        child.hear()
        shower(messaging, child.pid)
        assert_unhurt(child)


def starting(config: Config, stop: Callable[[Channel], None]) -> Callable[[Channel], None]:
    """A child that stops when it has its lock file, before it can be reached."""

    def body(channel: Channel) -> None:
        directory = Path(config.lock_directory) / "msg.lock"
        private = PrivateLock(os.open(config.lock_directory, os.O_RDONLY), config.lock_directory)
        lock_file = LockFile(os.open(directory, os.O_RDONLY), str(directory), os.getpid(), private)
        lock_file.acquire()
        stop(channel)

    return body


@chosen_pids
@pytest.mark.parametrize("talked_before", [False, True])
def test_victim_that_is_starting(config: Config, messaging: Messaging, peer: Peer, talked_before: bool) -> None:
    """It has only locked the lock file of the dead sleeper that had its pid."""
    if talked_before:
        messaging.send(peer.server_id, TEXT, b"hello")
        assert peer.call(take_data, 1) == [b"hello"]
    peer.call(fall_asleep)
    peer.kill()
    with Child(starting(config, victim), pid=peer.pid) as child:
        child.hear()
        shower(messaging, child.pid)
        assert_unhurt(child)


@chosen_pids
@pytest.mark.parametrize("of", ["the stale file", "its own file"])
def test_victim_between_the_lock_and_all_else(
    config: Config, messaging: Messaging, peer: Peer, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """The moments after it got a lock."""
    peer.call(fall_asleep)
    peer.kill()
    real, wanted = fcntl.lockf, fcntl.LOCK_SH if of == "the stale file" else fcntl.LOCK_EX

    def body(channel: Channel) -> None:
        def locked(fd: int, operation: int) -> None:
            real(fd, operation)
            if operation & wanted:
                victim(channel)
                os._exit(0)

        monkeypatch.setattr(fcntl, "lockf", locked)
        starting(config, victim)(channel)

    with Child(body, pid=peer.pid) as child:
        child.hear()
        shower(messaging, child.pid)
        assert_unhurt(child)


@chosen_pids
def test_successor_gets_nothing_of_its_predecessor(config: Config, start: StartPeer, messaging: Messaging) -> None:
    """Messages for the dead process do not go to the new one, however deep their queue was."""
    first = start()
    for number in range(3000):
        messaging.send(first.pid, TEXT, b"%d" % number)
    first.kill()
    with Peer(config, pid=first.pid) as second:
        messaging.send(second.pid, TEXT, b"for the second")
        assert second.call(take_data, 1) == [b"for the second"]
        assert is_gone(messaging, first.server_id)
        for number in range(3000):
            messaging.send(second.server_id, TEXT, b"%d" % number)
        assert second.call(take_data, 3000) == [b"%d" % number for number in range(3000)]


@chosen_pids
def test_successor_of_a_source_in_the_middle_of_a_deep_queue(config: Config, peer: Peer, start: StartPeer) -> None:
    """Both sources had the same pid; the segments of each are followed separately."""
    first = start()
    first.call(send_numbered, peer.server_id, b"first", 3000)
    first.kill()
    with Peer(config, pid=first.pid) as second:
        second.call(send_numbered, peer.server_id, b"second", 3000)
        data = peer.call(take_data, 6000)
    for name in (b"first", b"second"):
        assert [one for one in data if one.startswith(name)] == [b"%b %d" % (name, n) for n in range(3000)]


def send_numbered(session: Session, dst: ServerID, name: bytes, number: int) -> None:
    for one in range(number):
        session.messaging.send(dst, TEXT, b"%b %d" % (name, one))


def lock_everything(session: Session) -> None:
    """Take the lock over the whole file and keep it."""
    one = session.messaging._endpoint.backend
    assert isinstance(one, TdbBackend)
    one._file.tdb.lock_all()


@chosen_pids
def test_locks_of_a_process_with_a_chosen_pid(start: StartPeer) -> None:
    """The harness itself: they are its own, and are free when it has been killed."""
    sender, receiver, owner = start(), start(), start(pid=dead_pid())
    owner.call(lock_everything)
    sender.begin(send_many, receiver.server_id, [b"after"])
    wait_until_asleep(sender.pid)
    owner.kill()
    assert sender.hear() is None
    assert receiver.call(take_data, 1) == [b"after"]
