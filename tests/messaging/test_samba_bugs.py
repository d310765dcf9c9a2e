# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What went wrong in Samba's messaging and had no test here yet; docs/samba.md names the test of each scenario."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from functools import partial
from pathlib import Path

import pytest

from msgd import Config, Message, MessageTooLarge, Messaging, QueueFull, ServerID
from tests.backends.conftest import MakeConfig
from tests.support.harness import PATIENCE, TEXT, Channel, Child, Peer, Session, open_fds, take_data
from tests.support.strangers import NOBODY, needs_root, stranger

GENERATIONS = int(os.environ.get("MSGD_TEST_GENERATIONS", "40"))
"""Each child forks the next; 1000 for a long run."""


def test_descriptors_of_generations_of_forks(config: Config) -> None:
    """Bug 13006.  A child that has its own endpoint has as many descriptors as its parent had."""

    def generation(left: int, messaging: Messaging, channel: Channel) -> None:
        messaging.reinit()
        if left == 0:
            channel.send(len(open_fds()))
            messaging.close()
            return
        with Child(lambda inner: generation(left - 1, messaging, inner)) as child:
            number = child.hear()
            channel.send(number)
        messaging.close()

    with Messaging(config) as messaging:
        numbers = []
        for generations in (1, GENERATIONS):
            with Child(lambda channel, one=generations: generation(one, messaging, channel)) as child:  # type: ignore[misc]
                numbers.append(child.hear())
    pipes_to_its_parent = 1
    assert numbers[1] - numbers[0] <= pipes_to_its_parent * (GENERATIONS - 1), numbers


def test_handler_that_closes_another_context(config: Config) -> None:
    """Bug 13514.  The closed context's messages are drops, those of the others arrive."""
    received: list[str] = []
    with Messaging(config) as first, Messaging(config) as second, Messaging(config) as third:

        def close_both(message: Message) -> None:
            received.append("first")
            second.close()
            first.close()

        first.register(TEXT, close_both)
        second.register(TEXT, lambda message: received.append("second"))
        third.register(TEXT, lambda message: received.append("third"))
        for dst in (first, second, third):
            third.send(dst.server_id, TEXT)
        while "third" not in received:
            third.dispatch(None)
        assert received == ["first", "third"]


def test_handler_that_registers_itself_anew(messaging: Messaging) -> None:
    """d0590eec7e1.  A message that is handled is not handled again by what its handler registers."""
    received: list[bytes] = []

    def again(message: Message) -> None:
        received.append(message.data)
        messaging.deregister(TEXT, again)
        messaging.register(TEXT, again)

    messaging.register(TEXT, again)
    for text in (b"one", b"two"):
        messaging.send(messaging.server_id, TEXT, text)
    while len(received) < 2:
        messaging.dispatch(None)
    assert messaging.dispatch() == 0
    assert received == [b"one", b"two"]


def test_descriptors_for_several_handlers(messaging: Messaging) -> None:
    """cf0c773ca56.  All handlers see the descriptor open; the one that takes it keeps it."""
    if messaging.config.messaging_type == "tdb":
        with pytest.raises(MessageTooLarge, match="carries no file descriptors"):
            messaging.send(messaging.server_id, TEXT, fds=(0,))
        return
    seen: list[bool] = []
    kept: list[int] = []

    def look(message: Message) -> None:
        seen.append(all(os.path.exists(f"/proc/self/fd/{fd}") for fd in message.fds) and len(message.fds) == 1)

    def take(message: Message) -> None:
        look(message)
        kept.extend(message.take_fds())

    for handler in (look, take, look):
        messaging.register(TEXT, handler)
    reader, writer = os.pipe()
    try:
        messaging.send(messaging.server_id, TEXT, fds=[writer])
        os.close(writer)
        while not seen:
            messaging.dispatch(None)
        assert seen == [True, True, True]
        os.write(kept[0], b"x")
        assert os.read(reader, 1) == b"x"
    finally:
        os.close(reader)
        for fd in kept:
            os.close(fd)


@pytest.mark.parametrize("size", [0, 5000])
def test_no_descriptors(messaging: Messaging, peer: Peer, size: int) -> None:
    """Bug 14605.  An empty list of descriptors is none."""
    messaging.send(peer.server_id, TEXT, b"x" * size, fds=[])
    assert peer.call(take_data, 1) == [b"x" * size]


def test_context_that_only_sends(make_config: MakeConfig) -> None:
    """Bug 15201.  What is sent to a process that never dispatches does not grow in its memory: its senders are told."""
    config = make_config(send_queue_messages=100, max_message_size=10_000, send_queue_bytes=1_000_000)
    with Messaging(config) as only_sends, Peer(config) as peer:
        assert peer.call(send_until_full, only_sends.server_id)
        only_sends.send(peer.server_id, TEXT, b"still here")
        assert peer.call(take_data, 1) == [b"still here"]
        assert only_sends.statistics().received == 0


def send_until_full(session: Session, dst: ServerID) -> bool:
    for _ in range(1_000_000):
        try:
            session.messaging.send(dst, TEXT, b"x" * 1000)
        except QueueFull:
            return True
    return False


def test_names_with_and_without_a_unique_id(config: Config, messaging: Messaging) -> None:
    """22c5699751d.  An entry without a unique id is that of the pid's process as long as it lives."""
    tdb = pytest.importorskip("tdb")
    messaging.add_name("with")
    path = Path(config.lock_directory, "names.tdb")
    if not path.exists():
        pytest.skip("this build keeps names in a file of its own, which knows full addresses only")
    pid, unique_id = messaging.server_id.pid, messaging.server_id.unique_id

    def store(channel: Channel) -> None:
        flags = tdb.INCOMPATIBLE_HASH | tdb.CLEAR_IF_FIRST | tdb.NOMMAP
        database = tdb.Tdb(str(path), 0, flags, os.O_RDWR)
        database.store(b"without\0", f"{pid}\0".encode())
        database.store(b"stale\0", f"{pid}/{unique_id ^ 1}\0".encode())
        database.close()
        channel.send("stored")

    with Child(store) as child:
        assert child.hear() == "stored"
    assert [one.pid for one in messaging.lookup("without")] == [pid]
    assert messaging.lookup("with") == [messaging.server_id]
    assert messaging.lookup("stale") == []


def _append(received: list[int], number: int, message: Message) -> None:
    received.append(number)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_contexts_closed_in_any_order(config: Config, order: tuple[int, ...]) -> None:
    """Bug 12272.  The others still send and receive."""
    contexts = [Messaging(config) for _ in range(3)]
    received: list[int] = []
    for number, context in enumerate(contexts):
        context.register(TEXT, partial(_append, received, number))
    left = dict(enumerate(contexts))
    for closed in order:
        left.pop(closed).close()
        received.clear()
        for context in left.values():
            context.send(context.server_id, TEXT)
        while left and len(received) < len(left):
            next(iter(left.values())).dispatch(None)
        assert sorted(received) == sorted(left)


SENDERS = int(os.environ.get("MSGD_TEST_SENDERS", "25"))
"""Processes that send to one stopped receiver; 1000 for a long run."""


def test_many_senders_to_one_stopped_receiver(config: Config, peer: Peer) -> None:
    """95f3d9bb497.  All of them wait without disturbing each other, and everything arrives once it reads again."""

    def send_ten(number: int, channel: Channel) -> None:
        with Messaging(config) as messaging:
            for one in range(10):
                messaging.send(peer.server_id, TEXT, b"%d %d" % (number, one), timeout=PATIENCE)
            channel.send("sent or queued")
            channel.send(messaging.close(PATIENCE))

    peer.stop()
    children = [Child(partial(send_ten, number)) for number in range(SENDERS)]
    try:
        for child in children:
            assert child.hear() == "sent or queued"
        peer.resume()
        got = peer.call(take_data, 10 * SENDERS)
        assert [child.hear() for child in children] == [0] * SENDERS
    finally:
        for child in children:
            child.kill()
    by_sender = sorted(got, key=lambda text: int(text.split()[0]))  # stable: the order of each sender's is kept
    assert by_sender == [b"%d %d" % (number, one) for number in range(SENDERS) for one in range(10)]


def test_old_socket_without_a_lock_file(config: Config) -> None:
    """f1c49d7656b.  A lock directory was moved to a place where sockets of earlier processes are."""
    with Messaging(config):
        if config.messaging_type == "tdb":
            assert not Path(config.socket_directory, str(os.getpid())).exists()
            return
    path = Path(config.socket_directory, str(os.getpid()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as old:
        old.bind(str(path))
    assert path.exists()
    with Messaging(config) as messaging:
        received: list[bytes] = []
        messaging.register(TEXT, lambda message: received.append(message.data))
        messaging.send(messaging.server_id, TEXT, b"hello")
        while not received:
            messaging.dispatch(None)
    assert received == [b"hello"]


@needs_root
def test_ordinary_user(make_config: MakeConfig) -> None:
    """Bug 13368.  A process that never was root uses a directory of its own."""
    place = Path(tempfile.mkdtemp(dir="/tmp", prefix="m"))
    config = make_config(lock_directory=str(place / "lock"))

    def use(channel: Channel) -> None:
        with Messaging(config) as messaging:
            received: list[bytes] = []
            messaging.register(TEXT, lambda message: received.append(message.data))
            messaging.add_name("ordinary")
            messaging.send(messaging.server_id, TEXT, b"hello")
            while not received:
                messaging.dispatch(None)
            channel.send((received, messaging.lookup("ordinary") == [messaging.server_id]))

    try:
        os.chown(place, NOBODY, NOBODY)
        with stranger(place, use) as child:
            assert child.hear() == ([b"hello"], True)
    finally:
        shutil.rmtree(place)
