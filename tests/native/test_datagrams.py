# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""dgram: the compiled twin takes, and leaves to the checks, what the Python twin does."""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgd import Config, Message, Messaging, ServerID
from msgd.backends.dgram.receiving import Receiver
from msgd.native import native
from msgd.wire.dgram import DATAGRAM_MAX, FRAGMENT, WHOLE_COOKIE, pack_batch
from msgd.wire.header import MAX_FDS, MessageDecoder, pack_header

MESSAGING_TYPES = ("dgram",)
OWN, OTHER = ServerID(os.getpid(), 3, unique_id=9), ServerID(1, unique_id=9)


def whole(data: bytes, src: ServerID = OWN) -> bytes:
    return WHOLE_COOKIE + pack_header(ServerID(6, 2, unique_id=88), src, 7) + data


def seen(socket_directory: Path, receiver: Receiver, datagrams: list[tuple[bytes, int]], *, together: bool) -> object:
    """The messages and the complaints that come of these datagrams, each with a number of descriptors."""
    inbox: deque[Message] = deque()
    drops = dict(receiver._drops.counts)
    receive = receiver._receive_together if together else receiver._receive_singly
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(str(socket_directory / str(os.getpid())))
        for datagram, fds in datagrams:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * fds))] if fds else []
            out.sendmsg([datagram], rights)
    receive(inbox.append)
    for message in inbox:
        for fd in message.fds:
            os.close(fd)
    counts = {reason: number - drops.get(reason, 0) for reason, number in receiver._drops.counts.items()}
    return [(*message[:4], len(message.fds)) for message in inbox], {reason: n for reason, n in counts.items() if n}


fragments = st.builds(
    lambda cookie, pid: FRAGMENT.pack(cookie, 1252, pid, 5) + whole(bytes(1200))[8:1008],
    st.integers(1, 3),
    st.sampled_from([OWN.pid, 1]),
)
batches = st.one_of(
    st.lists(st.builds(whole, st.binary(max_size=60)), max_size=5).map(lambda all: pack_batch(one[8:] for one in all)),
    st.builds(
        lambda data, src, cut: pack_batch([whole(data)[8:], whole(data, src)[8:], whole(bytes(cut))[8:]])[: 3000 - cut],
        st.binary(max_size=60),
        st.sampled_from([OWN, OTHER]),
        st.integers(900, 1000),
    ),
)
datagrams = st.one_of(
    batches,
    st.builds(whole, st.binary(max_size=100)),
    st.builds(whole, st.binary(max_size=100)),
    st.builds(whole, st.binary(max_size=10), st.just(OTHER)),
    st.builds(whole, st.just(bytes(DATAGRAM_MAX - 60))),
    st.builds(whole, st.just(bytes(DATAGRAM_MAX - 59))),
    fragments,
    st.binary(max_size=80),
    st.binary(min_size=50, max_size=62).map(lambda data: WHOLE_COOKIE + data),
)


@given(st.lists(st.tuples(datagrams, st.sampled_from([0, 0, 0, 1, 2, MAX_FDS])), max_size=9))
def test_same_as_one_by_one(messaging: Messaging, sent: list[tuple[bytes, int]]) -> None:
    receiver = messaging._endpoint.backend._receiver  # type: ignore[attr-defined]
    place = Path(messaging._endpoint.presence.socket_directory)
    singly = seen(place, receiver, sent, together=False)
    receiver.reassembler.unfinished.clear()
    receiver.reassembler._bytes = receiver.reassembler._abandoned = 0
    before = len(os.listdir("/proc/self/fd"))
    assert seen(place, receiver, sent, together=True) == singly
    assert len(os.listdir("/proc/self/fd")) == before
    receiver.reassembler.unfinished.clear()
    receiver.reassembler._bytes = receiver.reassembler._abandoned = 0


def test_what_an_exception_leaves_comes_first(messaging: Messaging, monkeypatch: pytest.MonkeyPatch) -> None:
    """The datagrams that were received together and not checked yet are the first of the next receive()."""
    receiver: Receiver = messaging._endpoint.backend._receiver  # type: ignore[attr-defined]
    place = Path(messaging._endpoint.presence.socket_directory, str(os.getpid()))
    inbox: deque[Message] = deque()
    check = Receiver._receive_checked

    def interrupted(self: Receiver, *arguments: object) -> None:
        check(self, *arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        for number in range(5):
            out.sendto(whole(b"%d" % number), str(place))
        monkeypatch.setattr(Receiver, "_receive_checked", interrupted)
        with pytest.raises(KeyboardInterrupt):
            receiver.receive(inbox.append)
        monkeypatch.undo()
        out.sendto(whole(b"5"), str(place))
        receiver.receive(inbox.append)
    assert [message.data for message in inbox] == [b"%d" % number for number in range(6)]


def test_close_closes_what_is_kept(config: Config) -> None:
    with Messaging(config) as messaging:
        receiver: Receiver = messaging._endpoint.backend._receiver  # type: ignore[attr-defined]
        reading, writing = os.pipe()
        receiver._received.append(
            (whole(b""), [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [reading]).tobytes())], 0, None)
        )
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)
    os.close(writing)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (1, 2, 3, 4, 5),
        (MessageDecoder().addresses, -1, {}, print, print),
        (MessageDecoder().addresses, "0", {}, 1, 1),
    ],
)
def test_wrong_arguments(arguments: tuple[object, ...]) -> None:
    with pytest.raises((TypeError, OSError)):
        native.receive_datagrams(*arguments)
