# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 6 on dgram: the source must be the kernel's; only root, our user and trusted users are heard."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgd import Config, Messaging, ServerID
from tests.backends.conftest import MakeConfig, StartPeer
from tests.backends.dgram.raw import RawSender, dropped, honest, piece, whole
from tests.support.harness import TEXT, Channel, Child

MESSAGING_TYPES = frozenset({"dgram"})


@pytest.fixture
def received(messaging: Messaging) -> list[bytes]:
    received: list[bytes] = []
    messaging.register(TEXT, lambda message: received.append(message.data))
    return received


@pytest.fixture
def raw(config: Config, messaging: Messaging) -> Iterator[RawSender]:
    sender = RawSender(config, os.getpid())
    yield sender
    sender.close()


def test_raw_datagram_in_its_own_name(messaging: Messaging, raw: RawSender, received: list[bytes]) -> None:
    """The valid datagrams.  Each test below changes one thing about them."""
    raw.send(whole(messaging.server_id, b"hello"))
    raw.send(piece(7, 52 + 2000, whole(messaging.server_id, b"x" * 940)[8:]))
    raw.send(piece(7, 52 + 2000, b"x" * 1000))
    raw.send(piece(7, 52 + 2000, b"x" * 60))
    assert messaging.dispatch() == 2
    assert received == [b"hello", b"x" * 2000]


@pytest.mark.parametrize("claimed", [1, 2, 0, 1 << 40, (1 << 64) - 1])
def test_forged_source(messaging: Messaging, raw: RawSender, received: list[bytes], claimed: int) -> None:
    raw.send(whole(messaging.server_id, b"known sender first"))
    raw.send(whole(messaging.server_id, b"forged", src=ServerID(claimed)))
    assert messaging.dispatch() == 1
    assert received == [b"known sender first"]
    assert dropped(messaging) == 1
    honest(messaging, received)


def test_forged_source_of_a_living_process(
    messaging: Messaging, start: StartPeer, raw: RawSender, received: list[bytes]
) -> None:
    """No process may send in the name of another, not even one of root."""
    victim = start()
    raw.send(whole(messaging.server_id, b"forged", src=victim.server_id))
    raw.send(piece(1, 52 + 10, whole(messaging.server_id, b"0123456789", src=victim.server_id)[8:]))
    raw.send(piece(1, 52 + 10, whole(messaging.server_id, b"0123456789")[8:], pid=victim.pid))
    messaging.dispatch()
    assert received == []
    assert dropped(messaging) == 3
    honest(messaging, received)


def test_fragment_into_anothers_message(messaging: Messaging, received: list[bytes]) -> None:
    """A process cannot complete, change or abandon a message that another one has begun."""
    total = 52 + 1500
    config, dst = messaging.config, messaging.server_id

    def sender(channel: Channel) -> None:
        raw = RawSender(config, dst.pid)
        message = whole(dst, b"a" * 1500)[8:]
        raw.send(piece(9, total, message[:1000]))
        channel.send(os.getpid())
        channel.recv()
        raw.send(piece(9, total, message[1000:]))
        channel.send("sent")

    with Child(sender) as child:
        pid = child.hear()
        raw = RawSender(config, os.getpid())
        raw.send(piece(9, total, b"b" * (total - 1000), pid=pid))
        raw.send(piece(10, total, b"b" * 1000, pid=pid))
        raw.close()
        messaging.dispatch()
        assert dropped(messaging) == 2
        child.tell("go on")
        assert child.hear() == "sent"
        assert messaging.dispatch(None) == 1
    assert received == [b"a" * 1500]


# Other users


def reason_without_root() -> str | None:
    """Why a message of another user cannot be sent here, None if it can."""
    return None if os.geteuid() == 0 else "only root can start a process of another user: run the tests as root"


def nobody() -> int:
    return pwd.getpwnam("nobody").pw_uid


def speak_as(config: Config, dst: ServerID, uid: int, connect_first: bool, channel: Channel) -> None:
    """Send as another user, on a socket that was connected before or after the change of user."""
    raw = RawSender(config, dst.pid) if connect_first else None
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    raw = raw or RawSender(config, dst.pid)
    for _ in range(2):
        raw.send(whole(dst, b"from another user"))
    raw.send(piece(5, 52 + 4, whole(dst, b"also")[8:]))
    channel.send("sent")


def open_up(config: Config) -> None:
    """Let every user reach the sockets, as an administrator can."""
    for directory in (config.lock_directory, config.socket_directory, str(Path(config.lock_directory).parent)):
        os.chmod(directory, 0o711)


@pytest.mark.skipif(reason_without_root() is not None, reason=str(reason_without_root()))
@pytest.mark.parametrize("connect_first", [True, False])
def test_other_users_are_not_heard(
    config: Config, messaging: Messaging, received: list[bytes], connect_first: bool
) -> None:
    open_up(config)
    with Child(lambda channel: speak_as(config, messaging.server_id, nobody(), connect_first, channel)) as child:
        assert child.hear() == "sent"
    messaging.dispatch()
    assert received == []
    assert dropped(messaging) == 3
    assert any("user" in reason for reason in messaging.statistics().drops)
    honest(messaging, received)


@pytest.mark.skipif(reason_without_root() is not None, reason=str(reason_without_root()))
@pytest.mark.parametrize("connect_first", [True, False])
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_trusted_users_are_heard(make_config: MakeConfig, connect_first: bool, umask: int) -> None:
    """The receiver's umask has no effect: every user who may enter the directory can reach its socket."""
    config = make_config(trusted_users=frozenset({nobody()}))
    received: list[bytes] = []
    before = os.umask(umask)
    try:
        messaging = Messaging(config)
    finally:
        os.umask(before)
    with messaging:
        messaging.register(TEXT, lambda message: received.append(message.data))
        open_up(config)
        with Child(lambda channel: speak_as(config, messaging.server_id, nobody(), connect_first, channel)) as child:
            assert child.hear() == "sent"
        messaging.dispatch()
        assert received == [b"from another user"] * 2 + [b"also"]
        assert dropped(messaging) == 0
