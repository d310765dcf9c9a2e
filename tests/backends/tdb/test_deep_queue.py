# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A receiver that does not read: its queue goes on in segments and is bounded, and senders hear of room."""

from __future__ import annotations

import contextlib
import math
import os
import random
import resource
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import tdb

from msgd import Messaging, NoSuchProcess, QueueFull, ServerID, TransportError
from msgd.backends.tdb import destinations, grants, inbox, libtdb, messages_file, segments
from msgd.backends.tdb.backend import TdbBackend
from msgd.backends.tdb.words import GRANTS
from msgd.wire.tdb_record import CONTINUATION_SIZE, RECORD_WITH_IDS, pack_message, queue_key
from tests.backends.conftest import MakeConfig, StartPeer
from tests.backends.tdb.conftest import MODES, TDB_MAGIC
from tests.support.harness import (
    PATIENCE,
    TEXT,
    Channel,
    Child,
    ChildFailed,
    Peer,
    Session,
    clean_up,
    close,
    open_fds,
    send_many,
    take_data,
    wait_until_asleep,
)

DEEP = 20_000
MANY = {"send_queue_messages": 1_000_000}


def backend(messaging: Messaging) -> TdbBackend:
    one = messaging._endpoint.backend
    assert isinstance(one, TdbBackend)
    return one


def numbered(name: bytes, number: int, sizes: random.Random | None = None) -> list[bytes]:
    """Messages that contain their number; with `sizes`, of lengths up to 200,000 bytes, most of them short."""
    texts = [b"%b %d " % (name, one) for one in range(number)]
    if sizes is not None:
        texts = [text + b"." * min(int(sizes.paretovariate(0.6)), 200_000) for text in texts]
    return texts


def send_numbered(session: Session, dst: ServerID, name: bytes, number: int, seed: int | None = None) -> None:
    """Send without waiting for room."""
    for text in numbered(name, number, None if seed is None else random.Random(seed)):
        session.messaging.send(dst, TEXT, text)


def fill(messaging: Messaging, dst: ServerID, size: int = 0, limit: int = 1 << 20) -> int:
    """Send numbered messages until one is refused; return how many were accepted."""
    for number in range(limit):
        try:
            messaging.send(dst, TEXT, b"%d" % number + b"." * size)
        except QueueFull:
            return number
    raise AssertionError("nothing bounds the queue")


@pytest.mark.parametrize("mode", MODES)
def test_deep_queue_of_several_senders(make_config: MakeConfig, start: StartPeer, mode: str) -> None:
    """Each sender's messages arrive in order, each once, although the senders have been killed."""
    config = make_config(**MODES[mode], **MANY)
    receiver, senders = start(config), [start(config) for _ in range(4)]
    number = DEEP if mode == "mutexes" else 2000
    for place, sender in enumerate(senders):
        sender.begin(send_numbered, receiver.server_id, b"%d" % place, number, None)
    for sender in senders:
        assert sender.hear() is None
        sender.kill()
    data = receiver.call(take_data, 4 * number)
    for place in range(4):
        name = b"%d " % place
        assert [one for one in data if one.startswith(name)] == numbered(b"%d" % place, number)
    assert len(receiver.call(clean_up)) == 4
    assert receiver.call(leftovers) == 1


def leftovers(session: Session) -> int:
    """The keys in the file for this process."""
    session.messaging.dispatch()
    with backend(session.messaging)._file.all_keys() as keys:
        return sum(b"/%d\0" % os.getpid() in key or b"/%d/" % os.getpid() in key for key in keys)


def test_large_and_small_messages(make_config: MakeConfig, start: StartPeer) -> None:
    """The receiver reads meanwhile, so the senders keep going into segments and back to PID/<pid>."""
    config = make_config(**MANY)
    receiver, senders = start(config), [start(config) for _ in range(3)]
    for place, sender in enumerate(senders):
        sender.begin(send_numbered, receiver.server_id, b"%d" % place, 1500, place)
    data = receiver.call(take_data, 4500)
    for place in range(3):
        expected = numbered(b"%d" % place, 1500, random.Random(place))
        assert [one for one in data if one.startswith(b"%d " % place)] == expected
    for sender in senders:
        assert sender.hear() is None


def take_in_bursts(session: Session, number: int, bursts: int) -> list[bytes]:
    """Read a few, yield, read a few: what the senders know of the queue is always out of date."""
    data: list[bytes] = []
    while len(data) < number:
        data += take_data(session, 1)
        for _ in range(len(data) % bursts):
            os.sched_yield()
    return data


def test_continued_and_back(make_config: MakeConfig, start: StartPeer) -> None:
    """A slow receiver and small bounds: messages keep alternating between PID/<pid> and segments."""
    config = make_config(send_queue_messages=40, max_message_size=4096, send_queue_bytes=8192)
    receiver, senders = start(config), [start(config) for _ in range(3)]
    for place, sender in enumerate(senders):
        sender.begin(send_many, receiver.server_id, numbered(b"%d" % place, 3000))
    data = receiver.call(take_in_bursts, 9000, 7)
    for place in range(3):
        assert [one for one in data if one.startswith(b"%d " % place)] == numbered(b"%d" % place, 3000)


def nested(session: Session, number: int) -> list[bytes]:
    """Every handler calls dispatch, as request() in a handler does."""
    seen: list[bytes] = []
    depth = [0]

    def handler(message: object) -> None:
        seen.append(session.messages[-1].data)
        if depth[0] < 50:
            depth[0] += 1
            session.messaging.dispatch()
            depth[0] -= 1

    session.messaging.register(TEXT, handler)
    while len(seen) < number:
        session.messaging.dispatch(None)
    return seen


def test_dispatch_in_handlers(make_config: MakeConfig, start: StartPeer) -> None:
    config = make_config(**MANY)
    receiver, sender = start(config), start(config)
    sender.call(send_numbered, receiver.server_id, b"deep", 5000, None)
    assert receiver.call(nested, 5000) == numbered(b"deep", 5000)


class Interrupt(BaseException):
    """A BaseException, as KeyboardInterrupt is, that does not end the test run."""


def take_interrupted(session: Session, number: int) -> list[bytes]:
    seen: list[bytes] = []

    def handler(message: object) -> None:
        seen.append(session.messages[-1].data)
        if len(seen) % 3 == 0:
            raise Interrupt

    session.messaging.register(TEXT, handler)
    while len(seen) < number:
        with contextlib.suppress(Interrupt):
            session.messaging.dispatch(None)
    return seen


def test_handler_that_interrupts(make_config: MakeConfig, start: StartPeer) -> None:
    """What was taken from the file together with its message is not lost."""
    config = make_config(**MANY)
    receiver, sender = start(config), start(config)
    sender.call(send_numbered, receiver.server_id, b"deep", 5000, None)
    assert receiver.call(take_interrupted, 5000) == numbered(b"deep", 5000)


def close_in_handler(session: Session) -> bool:
    def handler(message: object) -> None:
        session.messaging.close(0)

    session.messaging.register(TEXT, handler)
    session.messaging.dispatch(None)
    return True


def test_close_in_a_handler(make_config: MakeConfig, messaging: Messaging, start: StartPeer) -> None:
    receiver, sender = start(), start()
    sender.call(send_numbered, receiver.server_id, b"deep", 5000, None)
    assert receiver.call(close_in_handler)
    with pytest.raises(NoSuchProcess):
        messaging.send(receiver.server_id, TEXT)
    assert messaging.pending(receiver.pid) == 0


# Bounds


@pytest.mark.parametrize(
    ("bounds", "size"),
    [
        ({"send_queue_messages": 1}, 0),
        ({"send_queue_messages": 2}, 0),
        ({"send_queue_messages": 20}, 0),
        ({"send_queue_messages": 700}, 0),
        ({"send_queue_messages": 5000}, 0),
        ({"send_queue_bytes": 1024, "max_message_size": 1024}, 10),
        ({"send_queue_bytes": 8192, "max_message_size": 8192}, 100),
        ({"send_queue_bytes": 65536, "max_message_size": 65536}, 3000),
        ({"send_queue_bytes": 500_000, "max_message_size": 65536}, 60000),
    ],
    ids=str,
)
def test_bound_is_kept_and_senders_hear_of_room(
    make_config: MakeConfig, start: StartPeer, bounds: dict[str, int], size: int
) -> None:
    config = make_config(**bounds)
    sender, receiver = start(config), start()
    accepted = sender.call(fill_for, receiver.server_id, size)
    messages, waiting = config.send_queue_messages, config.send_queue_bytes
    assert 1 <= accepted <= messages
    assert accepted == 1 or accepted * (24 + 1 + size) <= waiting
    assert accepted > min(messages, waiting // (24 + 6 + size)) // 3
    for again in range(3):
        sender.begin(send_waiting, receiver.server_id, b"patient" + b"." * size)
        assert receiver.call(take_data, accepted if again == 0 else 1)
        assert sender.hear() == "sent"


def fill_for(session: Session, dst: ServerID, size: int) -> int:
    return fill(session.messaging, dst, size)


def send_waiting(session: Session, dst: ServerID, text: bytes) -> str:
    return session.messaging.send(dst, TEXT, text, timeout=10 * PATIENCE).value


def test_room_for_a_message_as_large_as_the_bound(make_config: MakeConfig, start: StartPeer) -> None:
    """The sender's messages are in PID/<pid> only, none is in a segment: it hears of room all the same."""
    config = make_config(send_queue_bytes=65536, max_message_size=65536)
    sender, receiver = start(config), start()
    sender.call(send_numbered, receiver.server_id, b"small", 10, None)
    sender.begin(send_waiting, receiver.server_id, bytes(65536))
    assert len(receiver.call(take_data, 11)) == 11
    assert sender.hear() == "sent"


def test_sender_with_unread_messages_hears_of_room(make_config: MakeConfig, start: StartPeer) -> None:
    """Its own unread messages keep its descriptor readable.  It waits for room nevertheless, and does not spin."""
    config = make_config(send_queue_messages=20)
    sender, receiver = start(config), start()
    accepted = sender.call(fill_for, receiver.server_id, 0)
    receiver.call(send_numbered, sender.server_id, b"unread", 3, None)
    sender.begin(send_waiting_watched, receiver.server_id)
    wait_for_room(sender)
    assert receiver.call(take_data, accepted)
    assert sender.hear() < 20, "checks for room"


def send_waiting_watched(session: Session, dst: ServerID) -> int:
    """Send one message, waiting for room; return how often the sender checked for room."""
    session.messaging.fileno()
    one, looks = backend(session.messaging), 0
    flush = one.flush

    def counted(timeout: float = 0.0) -> None:
        nonlocal looks
        looks += 1
        flush(timeout)

    one.flush = counted  # type: ignore[method-assign]
    send_waiting(session, dst, b"patient")
    return looks


def wait_for_room(sender: Peer) -> None:
    """Give a sender that spins the time to check thousands of times."""
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        sender.channel.poll(0.1)


def test_sender_that_waits_hears_that_the_receiver_closes(make_config: MakeConfig, start: StartPeer) -> None:
    config = make_config(send_queue_messages=20)
    sender, receiver = start(config), start()
    sender.call(fill_for, receiver.server_id, 0)
    sender.begin(send_waiting, receiver.server_id, b"never")
    receiver.call(close)
    with pytest.raises(ChildFailed, match="NoSuchProcess"):
        sender.hear()


def test_short_lived_senders_do_not_make_the_record_deep(messaging: Messaging, start: StartPeer) -> None:
    """tdb_append copies the value, so each new sender checks the depth before it appends."""
    receiver = start()

    def body(channel: Channel) -> None:
        messaging.reinit()
        messaging.send(receiver.server_id, TEXT, b"." * 400)
        os._exit(0)

    for _ in range(100):
        Child(body).wait()
    assert len(backend(messaging)._file.tdb.get(b"PID/%d\0" % receiver.pid)) < grants.DEEPEST + 100 * 40
    assert receiver.call(take_data, 100) == [b"." * 400] * 100


@pytest.mark.parametrize("has_grant", [False, True])
def test_a_sender_with_a_grant_leaves_earlier(messaging: Messaging, start: StartPeer, has_grant: bool) -> None:
    """A flood goes on in segments at DEEP, those who send little at DEEPEST."""
    receiver, sender = start(), start()
    if has_grant:
        sender.call(send_many, receiver.server_id, [b"before"])
        assert receiver.call(take_data, 1) == [b"before"]
    texts = [b"%d" % number for number in range(1000)]
    sender.call(send_many, receiver.server_id, texts)
    depth = len(backend(messaging)._file.tdb.get(queue_key(receiver.pid)))
    most = grants.DEEP if has_grant else grants.DEEPEST
    assert most - 100 < depth <= most + grants.QUOTA
    assert receiver.call(take_data, 1000) == texts


# Room in the record


def place_of(session: Session, pid: int) -> int:
    """The offset of a process's record in the file."""
    file = backend(session.messaging)._file
    fd = file.fd
    return os.pread(fd, os.fstat(fd).st_size, 0).index(TDB_MAGIC + queue_key(pid))


def test_quotas_leave_room_to_announce_segments() -> None:
    """The two inequalities at the head of grants.py, which hold for every size of message."""
    quotas = (len(GRANTS) + 1) * grants.QUOTA
    assert grants.CROWDED + CONTINUATION_SIZE + quotas <= messages_file.ROOM
    assert grants.DEEPEST + quotas + 200 * CONTINUATION_SIZE <= grants.CROWDED


@pytest.mark.parametrize("size", [4, 4000])
def test_no_append_outgrows_the_record(make_config: MakeConfig, start: StartPeer, size: int) -> None:
    """There are many more senders than grants.  The record stays where it was made, so no kill can lose it."""
    config = make_config(**MANY)
    receiver, senders = start(config), [start(config) for _ in range(4 * len(GRANTS))]
    for sender in senders:
        sender.call(send_many, receiver.server_id, [b"meets it"])
        assert receiver.call(take_data, 1) == [b"meets it"]
    place = receiver.call(place_of, receiver.pid)
    for again in range(3):
        for sender in senders:
            sender.begin(send_sized, receiver.server_id, 60, size)
        for sender in senders:
            assert sender.hear() is None
        assert receiver.call(place_of, receiver.pid) == place
        assert len(receiver.call(take_data, 60 * len(senders))) == 60 * len(senders), again


def send_sized(session: Session, dst: ServerID, number: int, size: int) -> None:
    for _ in range(number):
        session.messaging.send(dst, TEXT, bytes(size))


def test_first_senders_get_grants_and_inherit_them_from_the_dead(
    make_config: MakeConfig, start: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "CHECK_INTERVAL", 0.0)
    config = make_config()
    senders = [start(config) for _ in range(len(GRANTS) + 2)]
    with Messaging(config) as messaging:
        seen: list[bytes] = []
        messaging.register(TEXT, lambda message: seen.append(message.data))

        def hear_all(who: list[Peer]) -> list[bool]:
            for sender in who:
                sender.call(send_many, messaging.server_id, [b"here"])
                messaging.dispatch(None)
            return [sender.call(is_granted, messaging.server_id) for sender in who]

        hear_all(senders)
        assert hear_all(senders) == [True] * len(GRANTS) + [False] * 2
        senders.pop(3).kill()
        hear_all(senders[-1:])
        assert hear_all(senders) == [True] * (len(GRANTS) - 1) + [False, True]


def is_granted(session: Session, dst: ServerID) -> bool:
    return backend(session.messaging)._destinations.open[dst.pid].quota > 0


def crowd(session: Session, dst: ServerID) -> int:
    """Fill the record as hundreds of "continued" records would; return the number of messages put there."""
    one = backend(session.messaging)
    record = pack_message(dst, session.messaging.server_id, TEXT, b"." * 24)
    number = grants.CROWDED // len(record) + 1
    one._file.tdb.append(queue_key(dst.pid), record * number)
    return number


def send_though_crowded(session: Session, dst: ServerID, number: int) -> tuple[int, int]:
    """Crowd the record and keep sending; return how many sends were refused, and the depth of the record.

    Each message is half a quota long, and a part of the quota is used already, so the rest is enough for one.
    """
    refused = 0
    outgoing = backend(session.messaging)._destinations.open[dst.pid]
    assert 0 < outgoing.unchecked_bytes <= outgoing.quota // 2 == grants.QUOTA // 2
    crowd(session, dst)
    for _ in range(number):
        try:
            session.messaging.send(dst, TEXT, bytes(grants.QUOTA // 2 - RECORD_WITH_IDS.size))
        except QueueFull:
            refused += 1
    return refused, len(backend(session.messaging)._file.tdb.get(queue_key(dst.pid)))


def test_grant_does_not_overfill_a_crowded_record(start: StartPeer) -> None:
    """The rest of the quota may be used once; a check that finds no room gives no new quota."""
    receiver, sender = start(), start()
    for _ in range(2):
        sender.call(send_many, receiver.server_id, [b"here"])
        assert receiver.call(take_data, 1) == [b"here"]
    assert sender.call(is_granted, receiver.server_id)
    refused, depth = sender.call(send_though_crowded, receiver.server_id, 40)
    assert refused == 40 - 1
    assert depth < messages_file.ROOM


def send_patiently(session: Session, dst: ServerID) -> None:
    """Send one message with a timeout that no test waits for."""
    session.messaging.send(dst, TEXT, b"waited", timeout=10 * PATIENCE)


def test_no_room_to_announce_a_segment(start: StartPeer) -> None:
    """The receiver counts as full; when it has read, senders that wait for room are woken up."""
    receiver, sender, waiting = start(), start(), start()
    number = sender.call(crowd, receiver.server_id)
    with pytest.raises(ChildFailed, match=r"QueueFull: pid \d+ does not read: the messages of too many processes"):
        sender.call(send_numbered, receiver.server_id, b"", 1)
    waiting.begin(send_patiently, receiver.server_id)
    wait_until_asleep(waiting.pid)
    assert receiver.call(take_data, number + 1)[-1] == b"waited"
    assert waiting.hear() is None


def refused_after_repair(session: Session, dst: ServerID) -> bool:
    """Send to a crowded record of a file that is found damaged; return whether the receiver counts as full."""
    session.messaging.send(dst, TEXT)
    known = backend(session.messaging)._destinations
    crowd(session, dst)
    with (
        mock.patch.object(type(known.open[dst.pid]), "append", side_effect=libtdb.missing_record()),
        pytest.raises(QueueFull),
    ):
        session.messaging.send(dst, TEXT)
    return known.are_full


def test_no_room_after_a_repair(start: StartPeer) -> None:
    """A receiver that has no room when the send is tried again counts as full, too."""
    receiver, sender = start(), start()
    assert sender.call(refused_after_repair, receiver.server_id)


# Destinations that are closed and opened again


def test_sender_that_forgets_and_continues_again(make_config: MakeConfig, start: StartPeer) -> None:
    """Its new segments are not mistaken for the old ones, which the receiver may still follow."""
    config = make_config(**MANY)
    receiver, sender = start(config), start(config)
    for again in range(3):
        name = b"%d" % again
        sender.call(send_numbered, receiver.server_id, name, 3000, None)
        assert receiver.call(take_data, 3000) == numbered(name, 3000)
        sender.call(send_numbered, receiver.server_id, name, 1, None)
        assert receiver.call(take_data, 1) == numbered(name, 1)
        sender.call(forget_all)


def forget_all(session: Session) -> None:
    """Close all destinations, as if there were too many."""
    one = backend(session.messaging)
    for peer in list(one._destinations.open.values()):
        one._destinations.forget(peer)


def opened_at_most(session: Session, most: int, others: list[ServerID]) -> int:
    """Send to each of these, with a table for so many destinations; how many are open then."""
    table = backend(session.messaging)._destinations
    table._max = most
    for other in others:
        session.messaging.send(other, TEXT, b"hello")
    return len(table.open)


def test_destinations_that_have_read_their_segments_make_room(make_config: MakeConfig, start: StartPeer) -> None:
    """All that are open were in segments; one that has not read them stays."""
    config = make_config(**MANY)
    sender, slow, *others = (start(config) for _ in range(5))
    for receiver in (slow, others[0], others[1]):
        sender.call(send_numbered, receiver.server_id, b"deep", 3000, None)
    for receiver in others[:2]:
        assert receiver.call(take_data, 3000) == numbered(b"deep", 3000)
    assert sender.call(opened_at_most, 3, [others[2].server_id]) == 3
    assert sender.call(opened_at_most, 3, [others[0].server_id, others[1].server_id, slow.server_id]) == 3
    assert slow.call(take_data, 3001) == [*numbered(b"deep", 3000), b"hello"]
    for receiver in others:
        assert receiver.call(take_data, 1) == [b"hello"]
    assert slow.call(slots)[0] <= 20, "those that were forgotten have left none"


class Meanwhile:
    """A tdb that calls `happens` as soon as one record has been read for the first time."""

    def __init__(self, real: tdb.Tdb, key: bytes, happens: Callable[[], object]) -> None:
        self._real, self._key, self._happens = real, key, happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._real.get(key)
        if key == self._key:
            self._key = b""
            self._happens()
        return value


def test_slot_is_used_again_while_messages_wait_in_the_record(make_config: MakeConfig, start: StartPeer) -> None:
    """The receiver has seen its record empty; now the source goes back to it, and then on into the same slot."""
    config = make_config(**MANY)
    sender = start(config)
    with Messaging(config) as messaging:
        seen: list[bytes] = []
        messaging.register(TEXT, lambda message: seen.append(message.data))
        sender.call(send_numbered, messaging.server_id, b"a", 1500, None)
        while len(seen) < 1500:
            messaging.dispatch(None)
        one = backend(messaging)
        assert one._inbox.sources
        receiving = one._inbox
        real = receiving._tdb
        receiving._tdb = Meanwhile(real, receiving._key, lambda: sender.call(go_back_and_continue, messaging.server_id))
        messaging.dispatch(0)
        receiving._tdb = real
        while len(seen) < 4501:
            messaging.dispatch(None)
        assert seen == numbered(b"a", 1500) + numbered(b"b", 1) + numbered(b"b", 3000)


def go_back_and_continue(session: Session, dst: ServerID) -> None:
    peer = backend(session.messaging)._destinations.open[dst.pid]
    peer.segments.since_check, peer.quota = segments.CHECK_AFTER, 0
    send_numbered(session, dst, b"b", 1)
    assert not peer.segments.continuation
    send_numbered(session, dst, b"b", 3000)
    assert peer.segments.continuation


def slots(session: Session) -> tuple[int, int]:
    """The number of slots in the file, and its size."""
    database = backend(session.messaging)._file.tdb
    with backend(session.messaging)._file.all_keys() as keys:
        return sum(key.count(b"/") > 1 for key in keys), database.map_size


def never_idle(session: Session) -> None:
    """Keep empty slots, however long the test takes."""
    segments.IDLE = math.inf


def test_slots_are_kept_and_removed_with_their_processes(make_config: MakeConfig, start: StartPeer) -> None:
    config = make_config(**MANY)
    receiver, sender = start(config), start(config)
    sender.call(never_idle)
    sizes = []
    for again in range(7):
        name = b"%d" % again
        sender.call(send_numbered, receiver.server_id, name, 8000, None)
        assert receiver.call(take_data, 8000) == numbered(name, 8000)
        sizes.append(receiver.call(slots))
    number, _ = sizes[2]
    assert 10 < number <= segments.SPARE_BYTES // messages_file.ROOM
    assert sizes[2:] == sizes[2:3] * 5, "at first, the ends of the last slot and of the small one are still free"
    sender.kill()
    assert receiver.call(clean_up) == [sender.pid]
    assert receiver.call(slots)[0] == 0


def test_idle_slots_are_deleted(make_config: MakeConfig, start: StartPeer) -> None:
    """A sender that has once had a deep queue, and has none any more, gives the space back while it goes on."""
    config = make_config(**MANY)
    receiver, sender = start(config), start(config)
    sender.call(send_numbered, receiver.server_id, b"deep", 8000, None)
    receiver.call(take_data, 8000)
    assert receiver.call(slots)[0] > 10
    while receiver.call(slots)[0]:
        sender.call(send_numbered, receiver.server_id, b"on", segments.CHECK_AFTER, None)
        receiver.call(take_data, segments.CHECK_AFTER)
    sender.call(send_numbered, receiver.server_id, b"deep", 3000, None)
    assert receiver.call(take_data, 3000) == numbered(b"deep", 3000)


def test_the_first_slot_is_small(make_config: MakeConfig, start: StartPeer) -> None:
    """Most senders that leave PID/<pid> have little more to say."""
    config = make_config(**MANY)
    receiver, sender = start(config), start(config)
    sender.call(send_numbered, receiver.server_id, b"few", 300, None)
    assert sender.call(rooms, receiver.pid) == [segments.FIRST_ROOM]
    sender.call(send_numbered, receiver.server_id, b"many", 500, None)
    assert sender.call(rooms, receiver.pid)[:2] == [segments.FIRST_ROOM, messages_file.ROOM]


def rooms(session: Session, pid: int) -> list[int]:
    """The room of each segment that waits for this process."""
    return [slot.room for slot in backend(session.messaging)._destinations.open[pid].segments.waiting]


def test_slots_are_removed_when_their_source_closes(start: StartPeer) -> None:
    receiver, sender = start(), start()
    sender.call(send_numbered, receiver.server_id, b"", 3000, None)
    assert receiver.call(take_data, 3000) == numbered(b"", 3000)
    sender.call(send_numbered, receiver.server_id, b"", 100, None)
    assert receiver.call(take_data, 100) == numbered(b"", 100)
    assert receiver.call(slots)[0] > 0
    sender.call(close)
    assert receiver.call(slots)[0] == 0


def test_large_slots_are_deleted(make_config: MakeConfig, start: StartPeer) -> None:
    config = make_config(**MANY)
    receiver, sender = start(config), start(config)
    for size in (100, 5_000_000, 100, 2_000_000, 100):
        texts = [bytes(size)] * 40
        for _ in range(2):
            sender.begin(send_many, receiver.server_id, texts)
            assert receiver.call(take_data, 40) == texts
            sender.hear()
    kept = sender.call(spare_bytes)
    assert kept <= segments.SPARE_BYTES


def spare_bytes(session: Session) -> int:
    return sum(
        slot.room
        for peer in backend(session.messaging)._destinations.open.values()
        for slot in peer.segments.slots.spare
    )


def test_destinations_that_died_with_a_deep_queue_are_closed(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender keeps no descriptors of receivers that have all died with a deep queue."""
    monkeypatch.setattr(destinations, "cached_destinations", lambda descriptors_each: 8)
    config = make_config(send_queue_messages=4)
    with Messaging(config) as messaging:
        counts = []
        for _ in range(30):
            with Peer(config) as peer:
                fill(messaging, peer.server_id)
            counts.append(len(open_fds()))
        assert counts[-1] == counts[15]
        assert len(backend(messaging)._destinations.open) <= 8


def test_many_short_lived_senders(messaging: Messaging) -> None:
    """Their descriptors are released, and their messages arrive although the senders have ended."""
    seen: list[bytes] = []
    messaging.register(TEXT, lambda message: seen.append(message.data))
    dst = messaging.server_id

    def body(channel: Channel) -> None:
        messaging.reinit()
        messaging.send(dst, TEXT, b"hello")
        os._exit(0)

    counts = []
    for _ in range(160):
        Child(body).wait()
        messaging.dispatch()
        counts.append(len(open_fds()))
    assert len(seen) == 160
    assert max(counts[145:]) <= max(counts[:145]) < 900
    messaging.clean_up()  # opening an endpoint has removed most of them before
    assert os.listdir(f"{messaging.config.lock_directory}/msg.lock") == [str(os.getpid())]
    assert messaging.pending(dst) == 0


def test_sender_that_could_not_announce_hears_that_the_receiver_closes(start: StartPeer) -> None:
    """The receiver's record has no room for an announcement, so the receiver does not know of this sender."""
    receiver, sender, waiting = start(), start(), start()
    sender.call(crowd, receiver.server_id)
    waiting.begin(send_patiently, receiver.server_id)
    wait_until_asleep(waiting.pid)
    receiver.call(close)
    with pytest.raises(ChildFailed, match="NoSuchProcess"):
        waiting.hear()


# When descriptors run out


def test_no_process_can_be_checked(messaging: Messaging, start: StartPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those that have a grant nor those that wait for room; messages are delivered nevertheless."""
    monkeypatch.setattr(grants, "CHECK_INTERVAL", 0.0)
    senders = [start() for _ in range(len(GRANTS) + 1)]
    seen: list[bytes] = []
    messaging.register(TEXT, lambda message: seen.append(message.data))
    for sender in senders[1:]:
        sender.call(send_many, messaging.server_id, [b"gets a grant"])
        messaging.dispatch()

    def process(pid: int) -> None:
        raise TransportError("no descriptors left")

    monkeypatch.setattr(backend(messaging).presence, "process", process)
    number = senders[0].call(crowd, messaging.server_id)
    while len(seen) < len(senders) - 1 + number:
        assert messaging.dispatch()


def take_without_descriptors(session: Session, number: int) -> list[bytes]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    session.messaging.fileno()
    used = len(os.listdir("/proc/self/fd")) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))
    try:
        return take_data(session, number)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_receiver_without_free_descriptors(start: StartPeer) -> None:
    """It cannot open its senders as destinations; their messages arrive nevertheless."""
    receiver, sender = start(), start()
    sender.call(send_numbered, receiver.server_id, b"deep", 3000, None)
    assert receiver.call(take_without_descriptors, 3000) == numbered(b"deep", 3000)


# A source that ends


def test_source_that_ends_between_two_checks(
    make_config: MakeConfig, start: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends once more and ends just while the receiver checks whether it is alive."""
    config = make_config(**MANY)
    sender = start(config)
    monkeypatch.setattr(inbox, "CHECK_INTERVAL", 0.0)
    with Messaging(config) as messaging:
        seen: list[bytes] = []
        messaging.register(TEXT, lambda message: seen.append(message.data))
        sender.call(send_numbered, messaging.server_id, b"a", 1500, None)
        one = backend(messaging)
        is_alive = one.presence.is_alive

        def ends(server_id: ServerID) -> bool:
            if sender.status is None:
                sender.call(append_to_segment, messaging.server_id)
                sender.kill()
            return is_alive(server_id)

        while len(seen) < 1500:
            messaging.dispatch(None)
        assert one._inbox.sources
        monkeypatch.setattr(one.presence, "is_alive", ends)
        messaging.dispatch(0)
        assert sender.status is not None
        messaging.dispatch(PATIENCE)
        assert seen[1500:] == [b"the last"]


def append_to_segment(session: Session, dst: ServerID) -> None:
    """Append as a source does that checked its segment a moment before the receiver emptied it."""
    one = backend(session.messaging)
    peer = one._destinations.open[dst.pid]
    one._file.tdb.append(peer.segments.waiting[-1].key, pack_message(dst, ServerID(os.getpid()), TEXT, b"the last"))
