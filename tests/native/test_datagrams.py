# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""dgram: the compiled twin takes, and leaves to the checks, what the Python twin does."""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from itertools import pairwise
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
    unfinished = [
        (key, one.cookie, one.total, one.header, one.length, one.held, one.received and one.received.getvalue())
        for key, one in receiver.reassembler.unfinished.items()
    ]
    return (
        [(*message[:4], len(message.fds)) for message in inbox],
        {reason: n for reason, n in counts.items() if n},
        (unfinished, receiver.reassembler._bytes),
    )


LONG = whole(bytes(range(256)) * 8)[8:]
"""Header and data of a message of several fragments."""


@st.composite
def pieces(draw: st.DrawFn) -> list[bytes]:
    """The fragments of one message, some of them wrong or missing."""
    cookie, number = draw(st.integers(1, 3)), draw(st.sampled_from([5, 5, 6]))
    message = draw(st.sampled_from([LONG, LONG, LONG[:-7], LONG[:30], whole(bytes(1500), OTHER)[8:]]))
    cuts = sorted(draw(st.sets(st.sampled_from([20, 52, 53, 700, 1000, 1500, 2040]), max_size=4)))
    places = [0, *(cut for cut in cuts if cut < len(message)), len(message)]
    total = len(message) + draw(st.sampled_from([0, 0, 0, 0, 1, -1, 1 << 40]))
    prefix = FRAGMENT.pack(cookie, total, draw(st.sampled_from([OWN.pid, OWN.pid, OWN.pid, 1])), number)
    some = [prefix + message[start:end] for start, end in pairwise(places)]
    return some if draw(st.booleans()) else draw(st.lists(st.sampled_from(some), max_size=4))


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
    st.binary(max_size=80),
    st.binary(min_size=50, max_size=62).map(lambda data: WHOLE_COOKIE + data),
)


rights = st.sampled_from([0, 0, 0, 1, 2, MAX_FDS])
some_sent = st.one_of(
    st.lists(st.tuples(datagrams, rights), max_size=2),
    pieces().map(lambda all: [(one, 0) for one in all]),
    pieces().map(lambda all: [(one, 0) for one in all]),
    st.tuples(pieces(), rights).map(lambda pair: [(one, pair[1] * (one is pair[0][-1])) for one in pair[0]]),
)


@given(st.lists(some_sent, max_size=4).map(lambda parts: [one for part in parts for one in part][:9]))
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


def test_long_message_without_python(messaging: Messaging) -> None:
    """The compiled twin takes all fragments of a known sender, and nothing is left of them."""
    receiver: Receiver = messaging._endpoint.backend._receiver  # type: ignore[attr-defined]
    place, inbox = Path(messaging._endpoint.presence.socket_directory, str(os.getpid())), deque[Message]()
    prefix = FRAGMENT.pack(5, len(LONG), OWN.pid, 4)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(whole(b"known from now on"), str(place))
        receiver.receive(inbox.append)
        for start in range(0, len(LONG), 1000):
            out.sendto(prefix + LONG[start : start + 1000], str(place))
        take = native.receive_datagrams
        more, lost = take(
            receiver._decoder.addresses, receiver.socket.fileno(), receiver._known_senders, inbox.append,
            receiver._received, receiver._assembly,
        )  # fmt: skip
    assert (more, lost, list(receiver._received)) == (False, 0, [])
    assert [message.data for message in inbox] == [b"known from now on", LONG[52:]]
    assert receiver._assembly.longest == len(LONG) - 52
    assert (len(receiver.reassembler), receiver.reassembler._bytes) == (0, 0)


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
        (1, 2, 3, 4, 5, 6),
        (MessageDecoder().addresses, -1, {}, print, print, 1),
        (MessageDecoder().addresses, "0", {}, 1, 1, 1),
    ],
)
def test_wrong_arguments(arguments: tuple[object, ...]) -> None:
    with pytest.raises((TypeError, OSError)):
        native.receive_datagrams(*arguments)
