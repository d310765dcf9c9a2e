# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Connections begin and end; messages are neither lost nor doubled nor reordered."""

from __future__ import annotations

import itertools
import os
import random
import resource
import select
import signal
import socket
import struct
import time
from collections import Counter
from pathlib import Path

import pytest

from msgd import Config, Message, MessageType, Messaging, NoSuchProcess, QueueFull, SendStatus, ServerID
from msgd.presence import Presence
from msgd.presence.private_lock import PRIVATE_FILE
from msgd.wire.stream import FRAME_SIZE, HELLO_SIZE
from tests.backends.stream.conftest import MakeConfig, StartPeer
from tests.backends.stream.raw import collect, sockets
from tests.support.harness import (
    PATIENCE,
    TEXT,
    Channel,
    Child,
    Peer,
    Session,
    dispatch_until,
    drain,
    fill,
    no_fd_leaks,
    serve,
    take_data,
)

BIG = 400_000
"""Bytes; no socket buffer takes them at once."""


def send_numbered(session: Session, dst: ServerID, first: int, number: int, size: int = 8) -> None:
    for one in range(first, first + number):
        session.messaging.send(dst, TEXT, one.to_bytes(8, "little") + bytes(size - 8))


def dispatch_once(session: Session) -> None:
    session.messaging.dispatch()


def count_sockets(session: Session) -> int:
    return sockets()


def take_numbers(session: Session, number: int) -> list[int]:
    """The numbers in the next messages; then drain what is queued."""
    numbers = [int.from_bytes(data[:8], "little") for data in take_data(session, number)]
    drain(session.messaging)
    return numbers


# One connection carries both ways


def test_answers_use_the_same_connection(start: StartPeer) -> None:
    one, other = start(), start()
    before = one.call(count_sockets), other.call(count_sockets)
    for turn in range(3):
        one.call(send_numbered, other.server_id, turn, 1)
        assert other.call(take_numbers, 1) == [turn]
        other.call(send_numbered, one.server_id, turn, 1)
        assert one.call(take_numbers, 1) == [turn]
    assert (one.call(count_sockets), other.call(count_sockets)) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("size", [8, BIG])
@pytest.mark.parametrize("lower_first", [True, False])
@pytest.mark.parametrize("rounds", list(itertools.product("lh", repeat=3)), ids="".join)
def test_simultaneous_connect(start: StartPeer, *, rounds: tuple[str, ...], lower_first: bool, size: int) -> None:
    """Both connect before either has accepted; whichever dispatches first, one connection is left."""
    lower, higher = sorted((start(), start()), key=lambda peer: peer.pid)
    before = lower.call(count_sockets), higher.call(count_sockets)
    pairs = [(lower, higher), (higher, lower)]
    for source, destination in pairs if lower_first else reversed(pairs):
        source.call(send_numbered, destination.server_id, 0, 2, size)
    sent = 2
    for which in rounds:
        (lower if which == "l" else higher).call(dispatch_once)
        for source, destination in pairs:
            source.call(send_numbered, destination.server_id, sent, 2, size)
        sent += 2
    lower.begin(take_numbers, sent)
    assert higher.call(take_numbers, sent) == list(range(sent))
    assert lower.hear() == list(range(sent))
    for source, destination in pairs:
        source.call(send_numbered, destination.server_id, sent, 1)
        assert destination.call(take_numbers, 1) == [sent]
    assert (lower.call(count_sockets), higher.call(count_sockets)) == (before[0] + 1, before[1] + 1)


def test_to_oneself(messaging: Messaging) -> None:
    received = collect(messaging)
    texts = [b"small", bytes(BIG), b"", b"last"]
    for text in texts:
        messaging.send(messaging.server_id, TEXT, text)
    dispatch_until(messaging, lambda: len(received) == len(texts))
    assert received == texts


# The cache


class Ledger:
    """What a peer has sent to and received from each process; each message carries its number."""

    def __init__(self, session: Session, sizes: list[int], seed: int) -> None:
        self.session = session
        self.random = random.Random(seed)
        self.sizes = sizes
        self.sent: Counter[int] = Counter()
        self.received: Counter[int] = Counter()
        self.refused = 0
        session.messaging.register(TEXT + 1, self.take)

    def take(self, message: Message) -> None:
        """Fail unless it is its sender's next message, complete; answer it if it asks for that."""
        number, size, answer = struct.unpack_from("<III", message.data)
        pid = message.src.pid
        assert (number, size) == (self.received[pid], len(message.data)), f"from {pid}"
        assert message.data[12:] == bytes([number % 256]) * (size - 12)
        self.received[pid] += 1
        if answer:
            self.send(message.src, answer=False)

    def send(self, dst: ServerID, *, answer: bool) -> None:
        """Send the next message."""
        size = 12 + self.random.choice(self.sizes)
        number = self.sent[dst.pid]
        data = struct.pack("<III", number, size, answer) + bytes([number % 256]) * (size - 12)
        self.session.messaging.send(dst, TEXT + 1, data)
        self.sent[dst.pid] += 1


def keep_ledger(session: Session, sizes: list[int], seed: int) -> None:
    session.kept = [Ledger(session, sizes, seed)]


def enter(session: Session, dst: ServerID) -> None:
    """Send one more message."""
    ledger: Ledger = session.kept[0]
    ledger.send(dst, answer=ledger.random.random() < 0.25)


def balance(session: Session) -> tuple[Counter[int], Counter[int], int, int]:
    """Dispatch once; then what was sent and received, and the number of handler errors and of drops."""
    session.messaging.dispatch()
    ledger: Ledger = session.kept[0]
    statistics = session.messaging.statistics()
    return ledger.sent, ledger.received, statistics.handler_errors, sum(statistics.drops.values())


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_events(start: StartPeer, seed: int) -> None:
    """Four processes with a cache of one act in turn, so that the seed reproduces a failure."""
    chance = random.Random(seed)
    peers = [start(connection_cache=1) for _ in range(4)]
    for peer in peers:
        peer.call(keep_ledger, [0, 100, 70_000, BIG], chance.randrange(1000))
    for _ in range(250):
        peer = chance.choice(peers)
        if chance.random() < 0.6:
            peer.call(enter, chance.choice(peers).server_id)
        else:
            peer.call(dispatch_once)
    _settle(peers)


def _settle(peers: list[Peer]) -> None:
    """Dispatch in turn until everything that was sent has been received, each message exactly once."""
    deadline = time.monotonic() + PATIENCE
    while True:
        balances = {peer.pid: peer.call(balance) for peer in peers}
        assert all(errors == drops == 0 for _, _, errors, drops in balances.values()), balances
        sent = {(pid, dst): number for pid, (out, *_) in balances.items() for dst, number in out.items()}
        received = {(src, pid): number for pid, (_, back, *_) in balances.items() for src, number in back.items()}
        if sent == received:
            return
        assert time.monotonic() < deadline, (sent, received)


def exchange(session: Session, pids: list[int], number: int) -> None:
    """Send `number` messages to each process, in random order, and receive as many from each."""
    ledger: Ledger = session.kept[0]
    todo = [pid for pid in pids if pid != os.getpid() for _ in range(number)]
    ledger.random.shuffle(todo)
    for pid in todo:
        ledger.send(ServerID(pid), answer=False)
        session.messaging.dispatch()
    dispatch_until(session.messaging, lambda: ledger.received.total() == len(todo))
    drain(session.messaging)


def test_fifty_peers_and_a_cache_of_three(start: StartPeer) -> None:
    peers = [start(connection_cache=3) for _ in range(50)]
    pids = [peer.pid for peer in peers]
    for seed, peer in enumerate(peers):
        peer.call(keep_ledger, [0, 0, 0, 3000], seed)
    before = [peer.call(count_sockets) for peer in peers]
    for peer in peers:
        peer.begin(exchange, pids, 3)
    for peer in peers:
        peer.hear()
    _settle(peers)
    assert max(peer.call(count_sockets) - old for peer, old in zip(peers, before, strict=True)) <= 3


def test_connections_to_everybody_are_kept_by_default(messaging: Messaging, start: StartPeer) -> None:
    peers = [start() for _ in range(30)]
    before = sockets()
    for text in (b"first", b"second"):
        for peer in peers:
            messaging.send(peer.server_id, TEXT, text)
        assert [peer.call(take_data, 1) for peer in peers] == [[text]] * len(peers)
        assert sockets() - before == len(peers)


def reach_with_few_descriptors(peers: list[Peer], limit: int, channel: Channel) -> None:
    for peer in peers:
        peer.channel.close()  # inherited descriptors
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with Messaging(channel.recv()) as messaging:
        before = sockets()
        for peer in peers:
            messaging.send(peer.server_id, TEXT, b"all of you")
        channel.send(sockets() - before)
        channel.recv()


def test_default_follows_the_limit_on_descriptors(config: Config, start: StartPeer) -> None:
    """A quarter of the descriptors are for connections that this process opens."""
    peers = [start() for _ in range(20)]
    with Child(lambda channel: reach_with_few_descriptors(peers, 64, channel)) as sender:
        sender.tell(config)
        assert sender.hear() == 16
        assert [peer.call(take_data, 1) for peer in peers] == [[b"all of you"]] * len(peers)
        sender.tell("end")


def test_more_peers_than_connections_may_be_open(start: StartPeer) -> None:
    """All messages arrive, even if every process is in the middle of one."""
    peers = [start(connection_cache=1, max_connections=4) for _ in range(8)]
    pids = [peer.pid for peer in peers]
    for seed, peer in enumerate(peers):
        peer.call(keep_ledger, [0, BIG], seed)
    for peer in peers:
        peer.begin(exchange, pids, 4)
    for peer in peers:
        peer.hear()
    _settle(peers)


def test_least_recently_used_ends_first(make_config: MakeConfig, start: StartPeer) -> None:
    peers = [start() for _ in range(3)]
    before = [peer.call(count_sockets) for peer in peers]
    with Messaging(make_config(connection_cache=2)) as messaging:
        for turn in (0, 1, 0, 2):
            messaging.send(peers[turn].server_id, TEXT, b"")
        for peer in peers:
            peer.call(take_data, 1)
            peer.call(dispatch_once)
        kept = [peer.call(count_sockets) - old for peer, old in zip(peers, before, strict=True)]
        assert kept == [1, 0, 1]
        peers[1].call(send_numbered, messaging.server_id, 0, 1)
        peers[2].call(send_numbered, messaging.server_id, 0, 1)
        received = collect(messaging)
        dispatch_until(messaging, lambda: len(received) == 2)
        for peer in peers:
            peer.call(dispatch_once)
        assert [peer.call(count_sockets) - old for peer, old in zip(peers, before, strict=True)] == [0, 1, 1]


def test_unsent_data_protects_a_connection(make_config: MakeConfig, start: StartPeer) -> None:
    slow, *others = (start() for _ in range(5))
    with Messaging(make_config(connection_cache=1)) as messaging:
        assert messaging.send(slow.server_id, TEXT, bytes(BIG)) is SendStatus.QUEUED
        for peer in others:
            messaging.send(peer.server_id, TEXT, b"")
        slow.begin(take_data, 1)
        drain(messaging)
        assert slow.hear() == [bytes(BIG)]


# Slow and full


def _is_full(messaging: Messaging, peer: Peer, text: bytes) -> bool:
    try:
        messaging.send(peer.server_id, TEXT, text)
    except QueueFull:
        return True
    return False


def test_slow_reader(make_config: MakeConfig, start: StartPeer) -> None:
    """It fills its own queue only; what was accepted arrives."""
    slow, quick = start(), start()
    with Messaging(make_config(send_queue_messages=20)) as messaging:
        texts: list[bytes] = []
        while (text := b"%d" % len(texts) + bytes(20_000)) and not _is_full(messaging, slow, text):
            texts.append(text)
        statistics = messaging.statistics()
        assert (statistics.queued_messages, statistics.blocked_destinations) == (20, 1)
        assert messaging.send(quick.server_id, TEXT, b"quick") is SendStatus.SENT
        assert quick.call(take_data, 1) == [b"quick"]
        slow.begin(take_data, len(texts))
        drain(messaging)
        assert slow.hear() == texts


def listen_with_short_backlog(config: Config) -> Child:
    """A living process that has a lock file and a listener whose backlog holds one connection."""

    def body(channel: Channel) -> None:
        presence = Presence(config)
        presence.announce()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"{config.socket_directory}/{os.getpid()}")
        listener.listen(0)
        channel.send(presence.unique_id)
        channel.recv()
        accepted = [listener.accept()[0] for _ in range(2)]
        texts = HELLO_SIZE + 2 * (FRAME_SIZE + 3)
        channel.send((accepted[0].recv(100), accepted[1].recv(texts, socket.MSG_WAITALL)))

    return Child(body)


def test_full_backlog(messaging: Messaging, config: Config) -> None:
    """No descriptor reports room in the backlog; the timer makes fileno() and flush() try again."""
    with listen_with_short_backlog(config) as child:
        child.hear()
        first = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        first.connect(f"{config.socket_directory}/{child.pid}")
        first.sendall(b"first")
        assert messaging.send(child.pid, TEXT, b"one") is SendStatus.QUEUED
        assert messaging.send(child.pid, TEXT, b"two") is SendStatus.QUEUED
        assert messaging.statistics().blocked_destinations == 1
        messaging.dispatch(0.05)
        assert messaging.statistics().queued_messages == 2
        child.tell("accept")
        drain(messaging)
        begun, ours = child.hear()
        assert begun == b"first"
        assert ours.endswith(b"two")
        first.close()


def test_full_backlog_of_a_process_that_dies(messaging: Messaging, config: Config) -> None:
    with listen_with_short_backlog(config) as child:
        child.hear()
        first = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        first.connect(f"{config.socket_directory}/{child.pid}")
        messaging.send(child.pid, TEXT, b"one")
    drain(messaging)
    assert messaging.statistics().drops == {"the destination is gone": 1}
    first.close()


# Dead processes and false names


def test_sender_that_dies_at_once(messaging: Messaging, start: StartPeer) -> None:
    """What it wrote arrives, although it died before its connection was accepted."""
    peer = start()
    peer.call(send_numbered, messaging.server_id, 0, 100)
    peer.kill()
    received = collect(messaging)
    dispatch_until(messaging, lambda: len(received) == 100)
    assert [int.from_bytes(data, "little") for data in received] == list(range(100))


def test_reset_comes_after_the_last_message(messaging: Messaging, start: StartPeer) -> None:
    """A socket closed with unread data reports a reset, but only after everything it sent has been read."""
    peer = start()
    peer.call(send_numbered, messaging.server_id, 0, 1)
    received = collect(messaging)
    dispatch_until(messaging, lambda: received)
    peer.call(send_numbered, messaging.server_id, 1, 50)
    messaging.send(peer.server_id, TEXT, b"never read")
    peer.kill()
    dispatch_until(messaging, lambda: len(received) == 51)
    with pytest.raises(NoSuchProcess):
        messaging.send(peer.server_id, TEXT, b"")


def test_killed_during_an_exchange(start: StartPeer, messaging: Messaging) -> None:
    """The others go on; messages for the dead process are counted as dropped, and its connection is gone."""
    victim, other = start(), start()
    other.begin(serve)
    for text in (b"x", bytes(BIG)) * 20:
        messaging.send(victim.server_id, TEXT, text)
    messaging.send(other.server_id, MessageType.PING, b"")
    queued = messaging.statistics().queued_messages
    assert queued
    victim.kill()
    pongs: list[bytes] = []
    messaging.register(MessageType.PONG, lambda message: pongs.append(message.data))
    dispatch_until(messaging, lambda: pongs)
    drain(messaging)
    assert messaging.statistics().drops == {"the destination is gone": queued}
    with pytest.raises(NoSuchProcess):
        messaging.send(victim.server_id, TEXT, b"")


def test_handler_that_sends_to_the_dead(messaging: Messaging, start: StartPeer) -> None:
    """send() raises NoSuchProcess while gathering, too, even if the process died in the same round."""
    dead, peer = start(), start()
    messaging.send(dead.server_id, TEXT, b"hello")
    errors: list[Exception] = []

    def forward(message: Message) -> None:
        dead.kill()
        try:
            messaging.send(dead.server_id, TEXT, message.data)
        except NoSuchProcess as error:
            errors.append(error)

    messaging.register(TEXT, forward)
    peer.call(send_numbered, messaging.server_id, 0, 2)
    dispatch_until(messaging, lambda: len(errors) == 2)
    assert messaging.statistics().queued_messages == 0


def test_socket_of_another_process(messaging: Messaging, config: Config) -> None:
    """The lock file says that the pid is alive, but another process listens under its name."""

    def body(channel: Channel) -> None:
        presence = Presence(config)
        presence.announce()
        channel.send(presence.unique_id)
        channel.recv()

    with Child(body) as child, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        child.hear()
        listener.bind(f"{config.socket_directory}/{child.pid}")
        listener.listen()
        with no_fd_leaks(), pytest.raises(NoSuchProcess, match=f"pid {os.getpid()}, uid .*, listens at"):
            messaging.send(child.pid, TEXT, b"")


def send_to_the_dead(session: Session, dst: ServerID) -> str:
    """With SIGPIPE at its default, write to a process that has been killed."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    session.messaging.send(dst, TEXT, b"")
    ended = session.messaging.watch(dst)
    os.kill(dst.pid, signal.SIGKILL)
    select.select([ended], [], [])
    try:
        session.messaging.send(dst, TEXT, b"")
    except NoSuchProcess as error:
        return str(error)
    return "no error"


def test_no_sigpipe(start: StartPeer) -> None:
    sender, victim = start(), start()
    assert str(victim.pid) in sender.call(send_to_the_dead, victim.server_id)


def test_reopened_endpoint(messaging: Messaging, start: StartPeer) -> None:
    """The process that has the pid now is reached at the first attempt; the former one is gone."""
    peer = start()
    messaging.send(peer.pid, TEXT, b"old")
    renewed = peer.call(_reopen)
    messaging.send(peer.pid, TEXT, b"new")
    with pytest.raises(NoSuchProcess):
        messaging.send(peer.server_id, TEXT, b"")
    assert peer.call(take_data, 1) == [b"new"]
    messaging.send(renewed, TEXT, b"by name")
    assert peer.call(take_data, 1) == [b"by name"]


def _reopen(session: Session) -> ServerID:
    session.messaging.close()
    session.__init__(session.config)  # type: ignore[misc]
    return session.messaging.server_id


# Handlers


def test_dispatch_inside_a_handler(messaging: Messaging, start: StartPeer) -> None:
    """It continues where the outer dispatch stopped; no message overtakes another."""
    peer = start()
    received: list[int] = []

    def handler(message: Message) -> None:
        received.append(int.from_bytes(message.data[:8], "little"))
        messaging.dispatch()

    messaging.register(TEXT, handler)
    for first, size in ((0, 8), (20, BIG), (22, 3000), (40, 8)):
        peer.begin(send_numbered, messaging.server_id, first, 2 if size == BIG else 18 if size == 3000 else 20, size)
        peer.hear()
    peer.begin(_drain)
    dispatch_until(messaging, lambda: len(received) == 60)
    peer.hear()
    assert received == list(range(60))
    assert messaging.statistics().drops == {}


def _drain(session: Session) -> None:
    drain(session.messaging)


def test_close_inside_a_handler(config: Config, start: StartPeer) -> None:
    peer = start()
    with no_fd_leaks():
        messaging = Messaging(config)

        def say_bye_and_close(message: Message) -> None:
            messaging.send(message.src, TEXT, b"bye")
            messaging.close()

        messaging.register(TEXT, say_bye_and_close)
        peer.call(send_numbered, messaging.server_id, 0, 10)
        while messaging.dispatch(PATIENCE) == 0:
            pass
    assert peer.call(take_data, 1) == [b"bye"]


def test_fill_and_close(config: Config, start: StartPeer) -> None:
    peer = start()
    messaging = Messaging(config)
    fill(messaging, peer.server_id, 2000)
    queued = messaging.statistics().queued_messages
    assert messaging.close(timeout=0) == queued > 0


def test_nothing_is_left_in_the_directories(config: Config, scratch: Path) -> None:
    with Messaging(config) as messaging:
        messaging.send(messaging.server_id, TEXT, b"")
        messaging.dispatch()
    assert [path.name for path in scratch.rglob("*") if not path.is_dir()] == [PRIVATE_FILE]
