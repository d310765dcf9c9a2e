# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""messages.tdb holds about what was ever queued at once, and is made shorter while it is used."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from msgd import Config, Messaging, ServerID
from msgd.backends.tdb.backend import TdbBackend
from msgd.backends.tdb.repair import SLACK
from tests.backends.conftest import MakeConfig, StartPeer
from tests.backends.tdb.conftest import MODES
from tests.backends.tdb.test_file import tool
from tests.support.harness import TEXT, Channel, Child, Session, clean_up, open_fds, send_many, take_data

MiB = 1 << 20
NEW_FILE = 4 * MiB
"""libtdb makes a file that much longer for the first record of msgd's."""


def size(config: Config) -> int:
    return (Path(config.lock_directory) / "messages.tdb").stat().st_size


def backend(messaging: Messaging) -> TdbBackend:
    one = messaging._endpoint.backend
    assert isinstance(one, TdbBackend)
    return one


def send_from_short_lived(messaging: Messaging, dst: ServerID, number: int, data: bytes) -> None:
    """Send that many messages from a process that closes and ends."""

    def body(channel: Channel) -> None:
        messaging.reinit()
        for _ in range(number):
            messaging.send(dst, TEXT, data)
        messaging.close()
        os._exit(0)

    assert Child(body).wait() == 0


def test_file_does_not_grow_with_short_lived_senders(messaging: Messaging) -> None:
    """Each of them queues 1.2 MB, which is read before the next one comes."""
    seen: list[int] = []
    messaging.register(TEXT, lambda message: seen.append(len(message.data)))
    for again in range(20):
        send_from_short_lived(messaging, messaging.server_id, 500, bytes(2400))
        while len(seen) < 500 * (again + 1):
            assert messaging.dispatch()
        assert size(messaging.config) <= NEW_FILE + MiB


@pytest.mark.parametrize("mode", MODES)
def test_file_is_made_shorter_while_it_is_used(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    """Processes that have mapped the long file go on, and it can grow again."""
    config = make_config(**MODES[mode])
    one, other, idle = start(config), start(config), start(config)
    one.call(send_many, idle.server_id, [b"before"])
    with Messaging(config) as messaging:
        seen: list[int] = []
        messaging.register(TEXT, lambda message: seen.append(len(message.data)))
        for _ in range(2):
            seen.clear()
            for _ in range(12):
                send_from_short_lived(messaging, messaging.server_id, 500, bytes(2400))
            long = size(config)
            assert 12 * 500 * 2400 < long < 2 * 12 * 500 * 2400 + NEW_FILE
            other.call(send_many, one.server_id, [b"meanwhile"])
            while len(seen) < 12 * 500:
                assert messaging.dispatch()
            assert size(config) < long // 2, "the receiver has deleted the slots of the dead"
            messaging.clean_up()
            assert size(config) <= NEW_FILE
            assert one.call(take_data, 1) == [b"meanwhile"]
            one.call(send_many, other.server_id, [b"%d" % number for number in range(900)])
            assert other.call(take_data, 900) == [b"%d" % number for number in range(900)]
    assert idle.call(take_data, 1) == [b"before"]
    assert "Database integrity is OK" in tool("tdbtool", Path(config.lock_directory) / "messages.tdb", "check")


def fill_and_clean(session: Session) -> None:
    """Make the file long with queues of a dead process, and short again, until killed."""
    messaging = session.messaging
    one = backend(messaging)
    while True:
        with one._file.changing_space():
            for number in range(200):
                one._file.make_record(b"PID/1/%d/1/1\0" % (os.getpid() * 1000 + number))
        with one._file.changing_space():
            for number in range(200):
                one._file.delete(b"PID/1/%d/1/1\0" % (os.getpid() * 1000 + number))
        one._file.shrink()


@pytest.mark.parametrize("mode", ["mutexes", "fcntl"])
def test_killed_while_the_file_is_made_shorter(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    """Whatever it was doing: the others' messages are there, and the file is whole for the next."""
    config = make_config(**MODES[mode])
    receiver, sender = start(config), start(config)
    moments = random.Random(1)
    for again in range(15):
        sender.call(send_many, receiver.server_id, [b"%d" % number for number in range(500)])
        victim = start(config)
        victim.begin(fill_and_clean)
        victim.channel.poll(moments.uniform(0, 0.1))
        victim.kill()
        assert receiver.call(take_data, 500) == [b"%d" % number for number in range(500)], again
    receiver.call(clean_up)
    assert size(config) <= NEW_FILE + SLACK
    assert "Database integrity is OK" in tool("tdbtool", Path(config.lock_directory) / "messages.tdb", "check")


def test_clean_up_closes_the_descriptors_of_the_dead(messaging: Messaging, start: StartPeer) -> None:
    before = len(open_fds())
    peers = [start() for _ in range(5)]
    for peer in peers:
        messaging.send(peer.server_id, TEXT)
    held = len(open_fds())
    for peer in peers:
        peer.kill()
    assert len(open_fds()) >= before + 3 * len(peers)
    messaging.clean_up()
    assert len(open_fds()) <= held - 3 * len(peers)
