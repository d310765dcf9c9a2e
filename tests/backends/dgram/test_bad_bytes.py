# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 8 on dgram, bad bytes: garbage is dropped and counted; no exception, no growing memory, no leaked fd."""

from __future__ import annotations

import os
import select
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from msgd import Config, Messaging, SendStatus, ServerID
from msgd.backends.dgram.backend import DgramBackend
from msgd.backends.dgram.receiving import new_socket
from msgd.presence.lock_file import LockFile
from msgd.presence.private_lock import PrivateLock
from msgd.wire.dgram import BATCH_COOKIE, pack_batch
from tests.backends.conftest import MakeConfig, StartPeer
from tests.backends.dgram.raw import WHOLE, RawSender, dropped, honest, piece, read_short_datagrams_only, whole
from tests.support.harness import TEXT, Channel, Child, Peer, Session, drain, open_fds, take_data

MESSAGING_TYPES = frozenset({"dgram"})

HEADER = 52

Prepare = Callable[[Session], None]


class Receiver:
    """A context, the messages that it received, and a raw socket to it."""

    def __init__(self, config: Config) -> None:
        self.messaging = Messaging(config)
        self.received: list[bytes] = []
        self.messaging.register(TEXT, lambda message: self.received.append(message.data))
        self.raw = RawSender(config, os.getpid())
        self.dst = self.messaging.server_id
        honest(self.messaging, self.received)

    def survive(self, *datagrams: bytes, fds: tuple[int, ...] = ()) -> int:
        """Receive the datagrams, check that the context still works, and return the number of dropped messages."""
        before, open_before = dropped(self.messaging), open_fds()
        for datagram in datagrams:
            self.raw.send(datagram, fds)
            self.messaging.dispatch()
        assert open_fds() == open_before
        count = dropped(self.messaging) - before
        honest(self.messaging, self.received)
        return count

    def unfinished(self) -> int:
        """The number of unfinished messages."""
        backend = self.messaging._endpoint.backend
        assert isinstance(backend, DgramBackend)
        return len(backend._receiver.reassembler)


@pytest.fixture
def receiver(make_config: MakeConfig) -> Iterator[Receiver]:
    receiver = Receiver(make_config(reassembly_messages=4))
    yield receiver
    receiver.raw.close()
    receiver.messaging.close()


integers = st.integers(0, (1 << 64) - 1) | st.integers(0, 2000) | st.sampled_from([1, (1 << 64) - 1, 16 << 20])
pids = st.just(os.getpid()) | st.integers(-(1 << 31), (1 << 31) - 1)
fragments = st.builds(
    lambda cookie, total, data, own, pid, number: piece(
        cookie, total, data, pid=os.getpid() if own else pid, number=number
    ),
    integers,
    integers,
    st.binary(max_size=1200),
    st.booleans(),
    pids,
    st.integers(-(1 << 31), (1 << 31) - 1),
)
bad_headers = st.builds(lambda header, data: WHOLE + header + data, st.binary(max_size=60), st.binary(max_size=1100))
server_ids = st.builds(ServerID, integers, st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), integers)
own_headers = st.builds(
    lambda dst, src, message_type, data: whole(dst, data, src._replace(pid=os.getpid()), message_type),
    server_ids,
    server_ids,
    st.integers(0, 0xFFFFFFFF) | st.integers(0, 15),
    st.binary(max_size=900),
)
datagrams = st.binary(max_size=1100) | fragments | bad_headers | own_headers


@settings(max_examples=300)
@given(garbage=st.lists(datagrams, max_size=8), with_fds=st.booleans())
@example(garbage=[b""], with_fds=True)
@example(garbage=[bytes(1025)], with_fds=False)
@example(garbage=[WHOLE], with_fds=True)
def test_garbage(receiver: Receiver, garbage: list[bytes], with_fds: bool) -> None:
    receiver.survive(*garbage, fds=(0, 1) if with_fds else ())
    assert receiver.unfinished() <= 4


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0", id="a byte"),
        pytest.param(bytes(7), id="half a cookie"),
        pytest.param(bytes(8), id="no header"),
        pytest.param(bytes(59), id="a byte short of a header"),
        pytest.param(piece(1, 3000, b""), id="empty fragment"),
        pytest.param(piece(1, 3000, b"")[:-1], id="half a fragment header"),
        pytest.param(piece(1, 3000, b"x" * 1001), id="a byte too long"),
        pytest.param(piece(1, 3000, b"x" * 60_000), id="far too long"),
        pytest.param(piece(1, 51, b"x" * 51), id="total shorter than a header"),
        pytest.param(piece(1, 0, b"x"), id="total of zero"),
        pytest.param(piece(1, HEADER + (16 << 20) + 1, b"x" * 1000), id="total over the maximum"),
        pytest.param(piece(1, (1 << 64) - 1, b"x" * 1000), id="largest total"),
        pytest.param(piece(1, 60, b"x" * 61), id="more than its total"),
        pytest.param(piece(1, 60, b"x" * 60), id="complete, with an invalid source"),
        pytest.param(BATCH_COOKIE, id="empty batch"),
        pytest.param(BATCH_COOKIE + b"\xff" * 60, id="batch with a length past its end"),
        pytest.param(pack_batch([bytes(HEADER), bytes(HEADER)]), id="batch with an invalid source"),
        pytest.param(pack_batch([bytes(HEADER)] * 2000), id="batch that is too long"),
    ],
)
@pytest.mark.parametrize("fds", [(), (0, 1, 2)])
def test_dropped_and_counted(receiver: Receiver, datagram: bytes, fds: tuple[int, ...]) -> None:
    assert receiver.survive(datagram, fds=fds) == 1
    assert receiver.unfinished() == 0


def test_batch_in_which_one_is_wrong(receiver: Receiver) -> None:
    """Nothing of it is delivered; a sound one is, although it is longer than 1024 bytes."""
    sound = [whole(receiver.dst, b"x" * 900)[8:], whole(receiver.dst, b"second")[8:]]
    forged = whole(receiver.dst, b"third", ServerID(1))[8:]
    before = len(receiver.received)
    assert receiver.survive(pack_batch([*sound, forged])) == 1
    assert receiver.survive(pack_batch(sound)) == 0
    assert receiver.received[before:] == [b"honest", b"x" * 900, b"second", b"honest"]


def test_total_that_changes(receiver: Receiver) -> None:
    """The message with the contradictory totals is abandoned."""
    assert receiver.survive(piece(1, 3000, b"x" * 1000), piece(1, 3001, b"x" * 1000)) == 1
    assert receiver.unfinished() == 0


def test_fragments_that_exceed_the_total(receiver: Receiver) -> None:
    assert receiver.survive(piece(1, 1500, b"x" * 1000), piece(1, 1500, b"x" * 501)) == 1
    assert receiver.unfinished() == 0


def test_new_cookie_abandons_the_old_message(receiver: Receiver) -> None:
    message = whole(receiver.dst, b"x" * 1500)[8:]
    total = len(message)
    count = receiver.survive(
        piece(1, total, b"y" * 1000), piece(2, total, message[:1000]), piece(2, total, message[1000:])
    )
    assert count == 1
    assert receiver.received[-2:] == [b"x" * 1500, b"honest"]


def test_bounded_number_of_unfinished_messages(receiver: Receiver) -> None:
    """The oldest messages of the same sender are abandoned and counted."""
    assert receiver.survive(*(piece(1, 5000, b"x" * 1000, number=number) for number in range(1000))) == 996
    assert receiver.unfinished() == 4


def test_unfinished_messages_expire(make_config: MakeConfig) -> None:
    receiver = Receiver(make_config(reassembly_timeout=0.01))
    try:
        receiver.raw.send(piece(1, 5000, b"x" * 1000))
        while not dropped(receiver.messaging):
            receiver.messaging.dispatch()
        assert receiver.unfinished() == 0
        honest(receiver.messaging, receiver.received)
    finally:
        receiver.raw.close()
        receiver.messaging.close()


def test_memory_is_taken_only_as_bytes_arrive(receiver: Receiver) -> None:
    """The first fragment of a 16 MiB message takes a kilobyte; a thousand take no more than the bound of four."""
    tracemalloc.start()
    try:
        for number in range(1000):
            receiver.raw.send(piece(number + 1, 16 << 20, b"x" * 1000, number=number))
            receiver.messaging.dispatch()
        current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current < 200_000
    assert peak < 400_000


def test_memory_for_invented_addresses_is_bounded(receiver: Receiver) -> None:
    """A sender cannot make the receiver remember every address that it invents."""
    own = ServerID(os.getpid())
    tracemalloc.start()
    try:
        for number in range(5000):
            src = own._replace(unique_id=number, task_id=number)
            receiver.raw.send(whole(receiver.dst._replace(task_id=number + 1), b"x", src))
            receiver.messaging.dispatch()
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert current < 1_500_000
    honest(receiver.messaging, receiver.received)


# Unexpected descriptors


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("number", [128, 200, 253])
def test_too_many_descriptors(receiver: Receiver, null: int, number: int) -> None:
    """More than a message may carry, up to the kernel's limit: the message is dropped, and all of them are closed."""
    assert receiver.survive(whole(receiver.dst, b"too many"), fds=(null,) * number) == 1
    assert b"too many" not in receiver.received


def test_descriptors_on_a_fragment_that_is_not_the_last(receiver: Receiver, null: int) -> None:
    message = whole(receiver.dst, b"x" * 2500)[8:]
    receiver.survive(piece(1, len(message), message[:1000]), fds=(null,))
    receiver.survive(piece(1, len(message), message[1000:2000]), fds=(null,) * 5)
    assert dropped(receiver.messaging) == 2


def test_descriptors_with_garbage(receiver: Receiver, null: int) -> None:
    for datagram in (b"", b"x" * 30, bytes(59), piece(1, 10, b"x"), whole(receiver.dst, b"", ServerID(1)), bytes(2000)):
        assert receiver.survive(datagram, fds=(null,) * 127) == 1


def test_descriptors_for_a_handler_that_ignores_them(receiver: Receiver, null: int) -> None:
    assert receiver.survive(whole(receiver.dst, b"take this"), fds=(null,) * 127) == 0
    assert receiver.received[-2:] == [b"take this", b"honest"]


# Messages for another destination


@pytest.mark.parametrize(
    "changed", [{"unique_id": 12345}, {"task_id": 9}, {"pid": 1}, {"pid": (1 << 64) - 1}], ids=lambda one: str(one)
)
def test_addressed_to_another(receiver: Receiver, changed: dict[str, int]) -> None:
    assert receiver.survive(whole(receiver.dst._replace(**changed), b"not for you")) == 1
    assert b"not for you" not in receiver.received


def test_ping_that_cannot_be_answered(receiver: Receiver) -> None:
    """The source of a PING may be false: a wrong unique id, another node, a task that does not exist."""
    own = ServerID(os.getpid())
    for src in (own._replace(unique_id=12345), own._replace(vnn=4), own._replace(task_id=9)):
        receiver.survive(whole(receiver.dst, b"", src, message_type=2))
    assert receiver.messaging.statistics().handler_errors == 0
    assert dropped(receiver.messaging) == 3


# The socket itself


def does_nothing(session: Session) -> None:
    """Be like a process of msgd's."""


both_lengths = pytest.mark.parametrize("prepare", [does_nothing, read_short_datagrams_only], ids=["long", "short"])
"""Datagrams as msgd's processes read them, and as Samba's do."""


@both_lengths
def test_interrupted_large_message_is_never_joined_with_another(
    make_config: MakeConfig, start: StartPeer, prepare: Prepare
) -> None:
    """A sender stops in the middle of a message, re-opens its endpoint and sends a message of the same length."""
    receiver = start()
    receiver.call(prepare)
    config = make_config(close_timeout=0)
    for number in range(3):
        with Messaging(config) as messaging:
            status = messaging.send(receiver.server_id, TEXT, b"%d" % number * 2_000_000)
            assert status is SendStatus.QUEUED
            assert messaging.close() == 1
        receiver.call(dispatch_once)
    with Messaging(config) as messaging:
        receiver.begin(take_data, 1)
        messaging.send(receiver.server_id, TEXT, b"w" * 2_000_000)
        drain(messaging)
        assert receiver.hear() == [b"w" * 2_000_000]


def dispatch_once(session: Session) -> int:
    return session.messaging.dispatch()


def rebind(session: Session) -> None:
    """Re-create the socket but not the lock file, as Samba does after a fork or a change of its directories."""
    backend = session.messaging._endpoint.backend
    assert isinstance(backend, DgramBackend)
    path = Path(session.config.socket_directory, str(os.getpid()))
    path.unlink()
    receiver = backend._receiver
    backend._epoll.unregister(receiver.socket)
    receiver.socket.close()
    receiver.socket = new_socket()
    receiver._take_short = receiver._taking_short()
    receiver.bind()
    backend._epoll.register(receiver.socket, select.EPOLLIN)


@pytest.mark.parametrize("size", [10, 5000])
def test_receiver_that_re_opened_its_socket(messaging: Messaging, peer: Peer, size: int) -> None:
    """Same process, same unique id, new socket: the old connection is refused once, and the message still arrives."""
    messaging.send(peer.server_id, TEXT, b"before")
    assert peer.call(take_data, 1) == [b"before"]
    peer.call(rebind)
    for number in range(5):
        messaging.send(peer.server_id, TEXT, b"%d" % number * size)
    peer.begin(take_data, 5)
    drain(messaging)
    assert peer.hear() == [b"%d" % number * size for number in range(5)]


@both_lengths
def test_receiver_that_re_opened_its_socket_in_the_middle(messaging: Messaging, peer: Peer, prepare: Prepare) -> None:
    """The message in flight is repeated from its first fragment; those behind it follow in order."""
    peer.call(prepare)
    data = [b"a" * 2_000_000, b"b" * 10, b"c" * 3000]
    for one in data:
        messaging.send(peer.server_id, TEXT, one)
    assert messaging.pending(peer.server_id) == len(data)
    peer.call(dispatch_once)
    messaging.dispatch()
    peer.call(rebind)
    peer.begin(take_data, 3)
    drain(messaging)
    assert peer.hear() == data


# Long fragments


def test_length_of_fragments_follows_the_receivers_lock_file(messaging: Messaging, config: Config) -> None:
    """A process of Samba's, whose lock file has one line, gets no datagram that it would cut off."""
    for lines, longest in ((("datagram 65536",), 65536), ((), 1024), (("datagram 300",), 1024)):
        with Child(partial(show_datagrams, config, lines)) as receiver:
            assert receiver.hear() == "here"
            messaging.send(receiver.pid, TEXT, bytes(100_000))
            receiver.tell("read")
            drain(messaging)
            lengths = receiver.hear()
        assert lengths[0] == 1024
        assert max(lengths) == longest
        assert sum(lengths) == 52 + 100_000 + 24 * len(lengths)


def show_datagrams(config: Config, lines: tuple[str, ...], channel: Channel) -> None:
    """Be a process of another kind, and tell the lengths of the datagrams that carry a message of 100,000 bytes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(Path(config.socket_directory, str(os.getpid()))))
        private = PrivateLock(os.open(config.lock_directory, os.O_RDONLY), config.lock_directory)
        lock_dir_fd = os.open(Path(config.lock_directory, "msg.lock"), os.O_RDONLY)
        lock_file = LockFile(lock_dir_fd, "msg.lock", os.getpid(), private)
        lock_file.acquire()
        lock_file.write(42, lines)
        channel.send("here")
        channel.recv()
        lengths: list[int] = []
        while sum(lengths) < 52 + 100_000 + 24 * len(lengths):
            lengths.append(len(bound.recv(1 << 17)))
        channel.send(lengths)


def test_long_fragment_that_begins_a_message(receiver: Receiver) -> None:
    """The first fragment must be short: nobody reads a longer one before it."""
    message = whole(receiver.dst, b"x" * 5000)[8:]
    assert receiver.survive(piece(1, len(message), message)) == 1
    assert receiver.unfinished() == 0


def test_long_datagrams_while_a_message_is_unfinished(receiver: Receiver) -> None:
    """Only fragments may be long then; others are dropped, and the message is completed all the same."""
    message = whole(receiver.dst, b"x" * 100_000)[8:]
    count = receiver.survive(
        piece(1, len(message), message[:1000]),
        whole(receiver.dst, b"too long" * 1000),
        piece(2, 51, b"y" * 60_000, number=4),
        piece(1, len(message), message[1000:]),
        piece(1, len(message), message[1000:60_000]),
        piece(1, len(message), message[60_000:]),
    )
    assert count == 3
    assert receiver.received[-2:] == [b"x" * 100_000, b"honest"]


def test_small_send_buffer(messaging: Messaging, peer: Peer) -> None:
    """Where the kernel takes no long fragments, the message goes on in short ones."""
    peer.begin(take_data, 2)
    messaging.send(peer.server_id, TEXT, b"first")
    backend = messaging._endpoint.backend
    assert isinstance(backend, DgramBackend)
    connected = backend._destinations[peer.pid].socket
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    messaging.send(peer.server_id, TEXT, b"x" * 100_000)
    drain(messaging)
    assert peer.hear() == [b"first", b"x" * 100_000]
    assert dropped(messaging) == 0
