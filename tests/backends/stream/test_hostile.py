# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What hostile and broken peers do to a process costs the other peers nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msgd import Config, Message, Messaging, ServerID
from msgd.wire.stream import pack_frame
from tests.backends.stream.conftest import Connect, MakeConfig, StartPeer
from tests.backends.stream.raw import (
    HELLO,
    RawConnection,
    accepted,
    collect,
    dispatch_until_dropped,
    dropped,
    frame,
    says,
    sockets,
    stranger,
)
from tests.support.harness import TEXT, Channel, Child, Peer, Session, dispatch_until, drain, no_fd_leaks, open_fds

BIG = 400_000
NOBODY = 65534


def send_honest(session: Session, pid: int) -> None:
    session.messaging.send(pid, TEXT, b"honest")


@contextlib.contextmanager
def unharmed(messaging: Messaging, received: list[bytes], honest: Peer) -> Iterator[None]:
    """Fail unless an honest peer's message arrives after the block."""
    yield
    before = len(received)
    honest.call(send_honest, os.getpid())
    dispatch_until(messaging, lambda: len(received) > before)
    assert received[before:] == [b"honest"]


# Slow and incomplete


def test_byte_by_byte(messaging: Messaging, connect: Connect, start: StartPeer) -> None:
    """Other peers are served between two bytes of the slowest writer there can be."""
    honest, received = start(), collect(messaging)
    connection = connect()
    for byte in HELLO + frame(messaging.server_id, b"slow") * 2:
        connection.send(bytes([byte]))
        messaging.dispatch()
    assert received == [b"slow"] * 2
    with unharmed(messaging, received, honest):
        connection.send(frame(messaging.server_id, b"half")[:40])
        messaging.dispatch()
    connection.send(frame(messaging.server_id, b"half")[40:])
    dispatch_until(messaging, lambda: received[3:])
    assert received[3:] == [b"half"]
    assert dropped(messaging) == 0


@pytest.mark.parametrize("cut", [1, 23, 24, 30, 75, 88, 200_000], ids=lambda cut: f"{cut} bytes")
def test_killed_in_the_middle(messaging: Messaging, config: Config, start: StartPeer, cut: int) -> None:
    """Half a message is dropped and counted; half a hello is not counted, as it is no message."""
    honest, received = start(), collect(messaging)
    whole = HELLO + frame(messaging.server_id, bytes(BIG))
    expected = 1 if cut > len(HELLO) else 0
    with unharmed(messaging, received, honest):
        with stranger(config, messaging.server_id, says(whole[:cut])) as child:
            child.hear()
            messaging.dispatch()
            assert accepted(config) == 1
        dispatch_until_dropped(messaging, expected)
    assert accepted(config) == 1
    assert dropped(messaging) == expected


def test_memory_for_long_messages_is_bounded(make_config: MakeConfig, start: StartPeer) -> None:
    """Six processes announce a MiB each and send one byte of it; the bound is two MiB for all."""
    honest, size = start(), 1 << 20
    config = make_config(max_message_size=size, receive_buffer_bytes=2 * size)

    def body(connection: RawConnection, channel: Channel) -> None:
        connection.send(HELLO + pack_frame(messaging.server_id, ServerID(os.getpid()), TEXT, size))
        channel.send("announced")
        channel.recv()
        connection.send(b"x")

    with Messaging(config) as messaging, contextlib.ExitStack() as stack:
        received = collect(messaging)
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        with unharmed(messaging, received, honest):
            for _ in range(6):
                child = stack.enter_context(stranger(config, messaging.server_id, body))
                child.hear()
                messaging.dispatch()
                child.tell("go on")
                child.hear()
                messaging.dispatch()
        assert 2 * size < tracemalloc.get_traced_memory()[1] < 3 * size


@pytest.mark.parametrize("length", [0, 51, (16 << 20) + 53, 0xFFFFFFFF])
def test_lying_length(messaging: Messaging, connect: Connect, length: int) -> None:
    """It is refused before memory is allocated for it."""
    lie = HELLO + b"msgd\x01\x02\x00\x00" + struct.pack("<I", length) + bytes(100)
    connection = connect()
    tracemalloc.start()
    try:
        connection.send(lie)
        dispatch_until_dropped(messaging, 1)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert connection.is_ended()


# Too many


def test_thousand_connections_of_one_process(messaging: Messaging, config: Config, start: StartPeer) -> None:
    """They count as one connection: opening the second ends the first."""
    honest, received = start(), collect(messaging)

    def body(channel: Channel) -> None:
        connections = [RawConnection(config, os.getppid()) for _ in range(1000)]
        for connection in connections[::2]:
            connection.send(HELLO)
        channel.send(len(connections))
        channel.recv()

    with Child(body) as child:
        child.hear()
        with unharmed(messaging, received, honest):
            while messaging.dispatch():
                pass
        for _ in range(40):
            messaging.dispatch()
        assert accepted(config) == 2


def test_silent_processes(make_config: MakeConfig, start: StartPeer) -> None:
    """Connections without a hello are kept up to a bound; past it the oldest is ended and counted."""
    honest = start()
    config = make_config(half_open_connections=3)
    with Messaging(config) as messaging, contextlib.ExitStack() as stack:
        received = collect(messaging)
        with unharmed(messaging, received, honest):
            for _ in range(8):
                stack.enter_context(stranger(config, messaging.server_id, says())).hear()
            messaging.dispatch()
            assert accepted(config) == 3
            assert dropped(messaging) == 5


def test_bound_on_all_connections(make_config: MakeConfig, start: StartPeer) -> None:
    """A connection that has been in the middle of a message for long makes room for another."""
    honest = start()
    config = make_config(max_connections=4)
    with Messaging(config) as messaging, contextlib.ExitStack() as stack:
        received = collect(messaging)
        with unharmed(messaging, received, honest):
            for _ in range(8):
                half = HELLO + frame(messaging.server_id, b"half")[:-1]
                stack.enter_context(stranger(config, messaging.server_id, says(half))).hear()
                messaging.dispatch()
                assert accepted(config) <= 2
        assert accepted(config) <= 2


def test_ten_thousand_connects_leak_nothing(messaging: Messaging, config: Config) -> None:
    received, before = collect(messaging), sockets()
    whole = HELLO + frame(messaging.server_id, b"text")
    with no_fd_leaks():
        for number in range(10_000):
            connection = RawConnection(config, os.getpid())
            if number % 2:
                connection.send(whole[: number % 80] if number % 4 == 1 else whole)
            connection.close()
            if number % 500 == 499:
                dispatch_until(messaging, lambda: accepted(config) == 0 and not _waiting(messaging))
    assert len(received) == 2500
    assert sockets() == before


def _waiting(messaging: Messaging) -> bool:
    return bool(select.select([messaging.fileno()], [], [], 0)[0])


# Liars


def test_lying_pid(messaging: Messaging, connect: Connect, start: StartPeer) -> None:
    """Messages before the forged one are delivered, those after it are not."""
    honest, received = start(), collect(messaging)
    connection = connect()
    connection.send(HELLO)
    for src in (None, honest.pid, None):
        connection.send(frame(messaging.server_id, b"%d" % (src or 0), src=src))
    with unharmed(messaging, received, honest):
        dispatch_until_dropped(messaging, 1)
        assert received == [b"0"]
        assert connection.is_ended()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize("trusted", [False, True])
def test_wrong_user(make_config: MakeConfig, scratch: Path, *, trusted: bool) -> None:
    """The connection is closed unread, and counted; a trusted user is heard."""
    scratch.chmod(0o755)
    (scratch / "lock").mkdir(mode=0o755)
    (scratch / "lock" / "msg.sock").mkdir(mode=0o711)
    config = make_config(trusted_users=frozenset([NOBODY] if trusted else []))

    def body(channel: Channel) -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        connection = RawConnection(config, os.getppid())
        connection.send(HELLO + frame(messaging.server_id, b"let me in", src=os.getpid()))
        channel.send("connected")
        channel.send(connection.is_ended())

    with Messaging(config) as messaging, Child(body) as child:
        received = collect(messaging)
        child.hear()
        if trusted:
            dispatch_until(messaging, lambda: received)
            assert received == [b"let me in"]
        else:
            dispatch_until_dropped(messaging, 1)
            assert list(messaging.statistics().drops) == ["of a user not to be heard"]
            assert child.hear() is True
            assert received == []


@settings(max_examples=60)
@given(garbage=st.binary(max_size=300), begun=st.booleans(), cut=st.integers(0, 80), fds=st.integers(0, 3))
def test_garbage(messaging: Messaging, connect: Connect, garbage: bytes, cut: int, fds: int, *, begun: bool) -> None:
    """Arbitrary bytes and descriptors anywhere: no exception, no leak, and an honest message arrives."""
    received = collect(messaging)
    with no_fd_leaks():
        connection = connect()
        start = HELLO + frame(messaging.server_id, b"text") if begun else b""
        connection.send(start[:cut] + garbage or b"x", [0] * fds)
        connection.close()
        honest = connect()
        honest.send(HELLO + frame(messaging.server_id, b"honest"))
        dispatch_until(messaging, lambda: b"honest" in received)
        honest.close()
        for _ in range(3):
            messaging.dispatch()
    messaging.deregister(TEXT)


# Descriptors


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_descriptors_on_split_frames(messaging: Messaging, connect: Connect, pipe: tuple[int, int]) -> None:
    """They belong to the frame with whose first byte they arrived, and are close-on-exec."""
    taken: list[tuple[bytes, int]] = []

    def handler(message: Message) -> None:
        assert not any(map(os.get_inheritable, message.fds))
        for fd in message.fds:
            os.write(fd, message.data[:1])
        taken.append((message.data[:1], len(message.fds)))

    messaging.register(TEXT, handler)
    connection = connect()
    connection.send(HELLO)
    messaging.dispatch()
    with no_fd_leaks():
        for data, number in ((b"a", 2), (b"b", 0), (b"c" * 70_000, 1), (b"d", 127)):
            whole = frame(messaging.server_id, data, fds=number)
            connection.send(whole[:1], [pipe[1]] * number)
            for position in range(1, len(whole), 9000):
                messaging.dispatch()
                connection.send(whole[position : position + 9000])
        dispatch_until(messaging, lambda: len(taken) == 4)
    assert taken == [(b"a", 2), (b"b", 0), (b"c", 1), (b"d", 127)]
    assert os.read(pipe[0], 1000) == b"aac" + b"d" * 127


def send_with_pipe(session: Session, dst: int, size: int) -> None:
    """Send a message with the writing end of a pipe."""
    reader, writer = os.pipe()
    session.kept.append(reader)
    session.messaging.send(dst, TEXT, bytes(size), fds=[writer])
    os.close(writer)


def read_pipe(session: Session) -> bytes:
    """What came out of the pipe; its writing end is open nowhere else."""
    drain(session.messaging)
    return b"".join(iter(lambda: os.read(session.kept[0], 100), b""))


def test_descriptors_of_a_repeated_frame(start: StartPeer) -> None:
    """A simultaneous connect cuts the frame; it is sent again with its descriptors."""
    lower, higher = sorted((start(), start()), key=lambda peer: peer.pid)
    higher.call(send_with_pipe, lower.pid, BIG)
    lower.call(send_honest, higher.pid)
    higher.call(_dispatch)
    assert lower.call(_wait_for_message_with_fd) is None
    higher.begin(read_pipe)
    assert lower.call(_write_into_fd) == BIG
    assert higher.hear() == b"here"


def _dispatch(session: Session) -> None:
    session.messaging.dispatch()


def _wait_for_message_with_fd(session: Session) -> None:
    sizes = session.kept

    def handler(message: Message) -> None:
        for fd in message.fds:
            os.write(fd, b"here")
        sizes.append(len(message.data))

    session.messaging.register(TEXT, handler)


def _write_into_fd(session: Session) -> int:
    dispatch_until(session.messaging, lambda: session.kept)
    assert len(session.kept) == 1
    size: int = session.kept[0]
    return size


@pytest.mark.parametrize("place", ["hello", "unannounced", "too few", "too many"])
def test_unannounced_descriptors(
    messaging: Messaging, config: Config, connect: Connect, pipe: tuple[int, int], place: str
) -> None:
    received = collect(messaging)
    before = open_fds()
    connection = connect()
    if place == "hello":
        connection.send(HELLO, [pipe[1]])
    else:
        connection.send(HELLO)
        announced = {"unannounced": 0, "too few": 2, "too many": 1}[place]
        sent = {"unannounced": 1, "too few": 1, "too many": 200}[place]
        connection.send(frame(messaging.server_id, b"text", fds=announced), [pipe[1]] * sent)
    dispatch_until_dropped(messaging, 1)
    assert connection.is_ended()
    connection.close()
    assert open_fds() == before
    assert accepted(config) == 0
    assert received in ([], [b"text"])


# Short of descriptors


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[Callable[[], None]]:
    """Let this process open no more descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, limits[1]))
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))

    def undo() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        while taken:
            os.close(taken.pop())

    try:
        yield undo
    finally:
        undo()


def test_accepting_without_descriptors(messaging: Messaging, start: StartPeer) -> None:
    """One more connection is always accepted; the others wait in the backlog until there are descriptors."""
    peers = [start() for _ in range(4)]
    received = collect(messaging)
    for peer in peers:
        peer.call(send_honest, os.getpid())
    with no_descriptors_left() as undo:
        dispatch_until(messaging, lambda: received)
        assert received == [b"honest"]
        undo()
        dispatch_until(messaging, lambda: len(received) == 4)
