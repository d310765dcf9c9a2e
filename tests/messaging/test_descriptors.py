# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""File descriptors ride with messages: close-on-exec, open while the handler runs, none leaked."""

from __future__ import annotations

import array
import os
import resource
from collections.abc import Callable, Iterator

import pytest

from msgd import Message, MessageTooLarge, Messaging, SendStatus, ServerID, TransportError
from tests.backends.variants import CARRYING_FDS
from tests.support.harness import TEXT, Peer, Session, dispatch_until, drain, fill, no_fd_leaks, open_fds, take_data

MESSAGING_TYPES = CARRYING_FDS


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def write_into(session: Session, number: int) -> list[tuple[int, int, list[bool]]]:
    """Take messages and write each one's data into its descriptors; how many came with which, all close-on-exec."""
    taken: list[tuple[int, int, list[bool]]] = []

    def handler(message: Message) -> None:
        for fd in message.fds:
            os.write(fd, message.data[:4])
        taken.append((len(message.data), len(message.fds), [os.get_inheritable(fd) for fd in message.fds]))

    before = open_fds()
    session.messaging.register(TEXT + 1, handler)
    dispatch_until(session.messaging, lambda: len(taken) >= number)
    assert open_fds() == before
    return taken


@pytest.mark.parametrize("size", [4, 964, 965, 2500, 100_000])
def test_pass_a_pipe(messaging: Messaging, peer: Peer, pipe: tuple[int, int], size: int) -> None:
    peer.begin(write_into, 1)
    messaging.send(peer.server_id, TEXT + 1, b"data" + bytes(size - 4), fds=[pipe[1]])
    drain(messaging)
    assert peer.hear() == [(size, 1, [False])]
    assert os.read(pipe[0], 100) == b"data"


def test_each_message_has_its_own(messaging: Messaging, peer: Peer, pipe: tuple[int, int]) -> None:
    """With and without descriptors, in pieces and whole, in turn; through the queue as well."""
    plan = [(4, 1), (3000, 2), (5, 0), (3000, 0), (6, 3), (100_000, 1)] * 5
    with no_fd_leaks():
        for size, number in plan:
            messaging.send(peer.server_id, TEXT + 1, b"data" + bytes(size - 4), fds=[pipe[1]] * number)
        assert messaging.statistics().queued_messages
        peer.begin(write_into, len(plan))
        drain(messaging)
        assert [one[:2] for one in peer.hear()] == plan
        messaging.close()
    assert os.read(pipe[0], 1000) == b"data" * sum(number for _, number in plan)


def test_senders_descriptor_may_be_closed_after_send(messaging: Messaging, peer: Peer) -> None:
    """Also that of a message which still waits in the queue."""
    filled = fill(messaging, peer.server_id)
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe:
        messaging.send(peer.server_id, TEXT + 1, b"data", fds=[writer])
        os.close(writer)
        peer.begin(write_into, 1)
        drain(messaging)
        assert peer.hear() == [(4, 1, [False])]
        assert pipe.read() == b"data", "and nobody keeps a copy: this is the end of the file"
    assert peer.call(take_data, len(filled)) == filled


@pytest.mark.parametrize("size", [4, 5000])
@pytest.mark.parametrize("number", [2, 127])
def test_as_many_as_go(messaging: Messaging, peer: Peer, pipe: tuple[int, int], size: int, number: int) -> None:
    peer.begin(write_into, 1)
    messaging.send(peer.server_id, TEXT + 1, b"data" + bytes(size - 4), fds=[pipe[1]] * number)
    drain(messaging)
    assert peer.hear() == [(size, number, [False] * number)]
    assert os.read(pipe[0], 1000) == b"data" * number


def test_too_many(messaging: Messaging, peer: Peer, pipe: tuple[int, int]) -> None:
    with no_fd_leaks(), pytest.raises(MessageTooLarge, match=r"128.*127"):
        messaging.send(peer.server_id, TEXT, b"refused", fds=[pipe[1]] * 128)
    messaging.send(peer.server_id, TEXT, b"after")
    assert peer.call(take_data, 1) == [b"after"]


@pytest.mark.parametrize("full", [False, True])
def test_descriptor_that_is_none(messaging: Messaging, peer: Peer, pipe: tuple[int, int], full: bool) -> None:
    """Refused in one line, nothing sent, and no copy of its good neighbours kept."""
    messaging.send(peer.server_id, TEXT, b"fill")
    while full and not messaging.statistics().queued_messages:
        messaging.send(peer.server_id, TEXT, b"fill")
    filled = messaging.statistics().sent
    with no_fd_leaks(), pytest.raises(TransportError):
        messaging.send(peer.server_id, TEXT, b"refused", fds=[pipe[1], pipe[1], 1_000_000])
    messaging.send(peer.server_id, TEXT, b"after")
    peer.begin(take_data, filled + 1)
    drain(messaging)
    assert peer.hear() == [*[b"fill"] * filled, b"after"]


def keep_copy(message: Message, kept: list[int]) -> None:
    kept.extend(os.dup(fd) for fd in message.fds)


@pytest.mark.parametrize("handler", ["none", "raising", "closed task", "keeps a copy"])
@pytest.mark.parametrize("size", [4, 3000])
def test_nothing_leaks_in_the_receiver(messaging: Messaging, pipe: tuple[int, int], handler: str, size: int) -> None:
    kept: list[int] = []

    def raising(message: Message) -> None:
        raise ZeroDivisionError

    dst = messaging.server_id
    if handler == "raising":
        messaging.register(TEXT, raising)
    elif handler == "keeps a copy":
        messaging.register(TEXT, lambda message: keep_copy(message, kept))
    messaging.send(dst, TEXT)
    messaging.dispatch()
    if handler == "closed task":
        with Messaging(messaging.config, task_id=5) as other:
            dst = other.server_id
            messaging.send(dst, TEXT)  # from now on it is known to be there
            messaging.dispatch()
    taken = sum(messaging.statistics().drops.values()) + messaging.statistics().received
    with no_fd_leaks():
        messaging.send(dst, TEXT, bytes(size), fds=pipe)
        messaging.dispatch()
        assert sum(messaging.statistics().drops.values()) + messaging.statistics().received > taken
        for fd in kept:
            os.close(fd)
    assert len(kept) == (2 if handler == "keeps a copy" else 0)


def test_merging_spares_descriptors(messaging: Messaging, peer: Peer, pipe: tuple[int, int]) -> None:
    """Two messages with the same data are not the same if one has descriptors."""
    fill(messaging, peer.server_id)
    for fds, merged in (([], False), ([pipe[1]], False), ([], True)):
        status = messaging.send(peer.server_id, TEXT + 1, b"data", fds=fds, duplicates_allowed=False)
        assert (status is SendStatus.MERGED) == merged
    peer.begin(write_into, 2)
    drain(messaging)
    assert peer.hear() == [(4, 0, []), (4, 1, [False])]


def test_answer_with_descriptors(messaging: Messaging, peer: Peer, pipe: tuple[int, int]) -> None:
    """request() hands the caller copies of its own."""
    peer.begin(answer_with_pipe)
    with no_fd_leaks():
        answer = messaging.request(peer.server_id, TEXT + 1, b"", TEXT + 2)
        [fd] = answer.fds
        assert not os.get_inheritable(fd)
        assert os.read(fd, 10) == b"hello"
        os.close(fd)
        messaging.close()


def answer_with_pipe(session: Session) -> None:
    def handler(message: Message) -> None:
        reader, writer = os.pipe()
        os.write(writer, b"hello")
        session.messaging.send(message.src, TEXT + 2, fds=[reader])
        os.close(reader)
        os.close(writer)

    session.messaging.register(TEXT + 1, handler)
    session.messaging.dispatch(None)


# A process that has no descriptors left


def exhaust() -> Callable[[], None]:
    """Let this process open no further descriptor; the function undoes it."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = array.array("i")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, limits[1]))
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass

    def undo() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)

    return undo


def receive_with_no_descriptors_left(session: Session) -> tuple[list[bytes], dict[str, int], bool]:
    received: list[bytes] = []
    session.messaging.register(TEXT + 1, lambda message: received.append(message.data))
    before = open_fds()
    undo = exhaust()
    try:
        dispatch_until(session.messaging, lambda: received)
    finally:
        undo()
    return received, dict(session.messaging.statistics().drops), open_fds() == before


def test_receiver_without_descriptors_left(messaging: Messaging, peer: Peer, pipe: tuple[int, int]) -> None:
    """What comes with descriptors is dropped and counted; nothing leaks, and the rest arrives."""
    messaging.send(peer.server_id, TEXT + 1, b"with", fds=[pipe[1]] * 5)
    messaging.send(peer.server_id, TEXT + 1, b"without")
    received, drops, clean = peer.call(receive_with_no_descriptors_left)
    assert received == [b"without"]
    assert sum(drops.values()) == 1
    assert clean


def send_with_no_descriptors_left(session: Session, dst: ServerID) -> str:
    undo = exhaust()
    try:
        session.messaging.send(dst, TEXT, b"x")
    except TransportError as error:
        return str(error)
    finally:
        undo()
    return "sent"


def test_sender_without_descriptors_left(messaging: Messaging, peer: Peer) -> None:
    """It is told so, and not that there is no such process."""
    assert "Too many open files" in peer.call(send_with_no_descriptors_left, messaging.server_id)
