# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Topics across three real nodes: publications, gaps and acknowledgements."""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from msgd import HandlerFailed, Messaging, NoSuchProcess, ReplyTimeout, TransportError, aio
from msgd.cluster.connection import Connection
from msgd.pubsub import Event, Gap, GapReason, PubSub
from msgd.pubsub.events import Publication
from msgd.pubsub.parcel import pack_parcel
from msgd.wire.ctdb import SRVID_BROADCAST, NodeMessage, Opcode, Packet, Reply, pack_control
from tests.cluster.conftest import MakeConfig
from tests.pubsub.workers import INTERVAL, Notes, Worker, heard, publish, so_far, wait
from tests.support.ctdb_nodes import Cluster, await_true
from tests.support.harness import PATIENCE, TEXT

StartWorker = Callable[..., Worker]


@pytest.fixture(autouse=True)
def whole_again(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.restore()


@pytest.fixture
def work(on_node: MakeConfig) -> Iterator[StartWorker]:
    """Starts workers on nodes, which are killed at the end of the test."""
    workers: list[Worker] = []

    def start_worker(number: int, *topics: str, first: Callable[[Notes], object] | None = None) -> Worker:
        workers.append(Worker(on_node(number), *topics, first=first))
        return workers[-1]

    yield start_worker
    for worker in workers:
        worker.kill()


@pytest.fixture
def pubsub(on_node: MakeConfig) -> Iterator[PubSub]:
    """A PubSub of the test's process, on node 0, for which an empty node is silent after a moment."""
    with PubSub(on_node(0), check_interval=INTERVAL) as pubsub:
        others = pubsub._open().others
        assert others is not None
        others.roll_timeout = 1.0
        yield pubsub


def await_mirrors(notes: Notes, number: int) -> None:
    """Wait until the numbers of so many tables of other nodes are known."""
    others = notes.pubsub._open().others
    assert others is not None
    wait(notes, lambda: sum(one.is_known for one in tuple(others._mirrors.values())) >= number)


def lose(notes: Notes, topic: str, data: Any) -> None:
    """Count a publication, and do not send it, as a process that is killed in between."""
    hub = notes.pubsub._open()
    hub._number(pack_parcel(topic, data, hub.config.max_message_size), is_for_itself=False)


def test_a_topic_reaches_the_workers_of_all_nodes(work: StartWorker) -> None:
    """Each once, in order; nobody is told a gap, and who wants another topic hears nothing."""
    workers = [work(number, "prices.*") for number in (0, 1, 1, 2)]
    other = work(1, "weather")
    delivered, failures = workers[0].call(publish, "prices.eur", 0)
    assert (delivered, failures) == (1, [])  # itself; of the other nodes nobody knows
    for number in range(1, 500):
        workers[number % 4].call(publish, "prices.eur", number, include_self=True)
    workers[0].call(publish, "weather", "fine")
    for worker in workers:
        worker.call(publish, "prices.last", "last")
    for worker in workers:
        wanted = set(range(500)) | {"last"}
        assert worker.call(all_heard, wanted, 4) == (sorted(range(500)), [])
    assert other.call(heard, "fine") == ["fine"]


def all_heard(notes: Notes, wanted: set[Any], last: int) -> tuple[list[int], list[Gap]]:
    """The numbers that were heard, once the last word has been heard so often, and the gaps."""
    wait(notes, lambda: notes.heard.count("last") == last)
    return sorted(one for one in notes.heard if isinstance(one, int)), notes.gaps()


def test_who_subscribes_to_nothing_is_sent_nothing(
    cluster: Cluster, on_node: MakeConfig, pubsub: PubSub, work: StartWorker
) -> None:
    """Not even by ctdbd, which gives each process what is for its srvids."""
    subscriber = work(1, "t")
    with contextlib.closing(Connection(str(cluster.nodes[1].socket), 1 << 20)) as bystander:
        bystander.send(pack_control(1, Opcode.REGISTER_SRVID, srvid=SRVID_BROADCAST))
        assert isinstance(next_packet(bystander), Reply)
        pubsub.publish("t", "one")
        pubsub.publish_many([("t", "two"), ("t", "three")])
        assert subscriber.call(heard, "three") == ["one", "two", "three"]
        with Messaging(on_node(0)) as messaging:
            messaging.send_all(TEXT, b"to everybody")
        packet = next_packet(bystander)
        assert isinstance(packet, NodeMessage)
        assert packet.data.endswith(b"to everybody")


def next_packet(connection: Connection) -> Packet:
    """The next packet that comes."""
    while True:
        assert select.select([connection], [], [], PATIENCE)[0]
        for packet in connection.receive():
            return packet


def test_order(work: StartWorker) -> None:
    publisher, subscriber = work(0), work(1, "t")
    publisher.call(publish_range, 2000)
    assert subscriber.call(heard, 1999) == list(range(2000))


def publish_range(notes: Notes, number: int) -> None:
    for one in range(number):
        assert notes.pubsub.publish("t", one).is_complete


def test_what_was_counted_and_not_sent_is_a_gap(work: StartWorker) -> None:
    publisher, subscriber = work(0), work(1, "t")
    publisher.call(publish, "t", "first")
    subscriber.call(heard, "first")
    publisher.call(lose, "t", "lost")
    publisher.call(publish, "t", "third")
    assert subscriber.call(heard, "third") == ["first", Gap(GapReason.MISSING, 1), "third"]


def test_what_was_counted_and_nothing_comes_behind_it_is_overdue(work: StartWorker) -> None:
    """The next publisher or subscriber of the node tells the numbers: the one that counted it is dead."""
    publisher, beside, subscriber = work(0), work(0), work(1, "t")
    beside.call(so_far)
    publisher.call(publish, "t", "first")
    subscriber.call(heard, "first")
    subscriber.call(await_mirrors, 1)
    beside.call(publish, "other", "nothing")
    publisher.call(lose, "t", "lost")
    publisher.kill()
    assert subscriber.call(heard, Gap) == ["first", Gap(GapReason.OVERDUE, 1)]


def test_who_subscribes_later_has_missed_nothing(work: StartWorker) -> None:
    """What was published before is no gap: nothing has been counted since the newcomer began."""
    publisher, witness = work(0), work(2, "t")
    publisher.call(publish, "t", "before")
    witness.call(heard, "before")
    newcomer = work(1, "t")
    newcomer.call(await_mirrors, 2)
    publisher.call(publish, "t", "after")
    assert newcomer.call(heard, "after") == ["after"]


def test_what_is_published_between_making_and_subscribing_is_a_gap(on_node: MakeConfig, work: StartWorker) -> None:
    """The program may have read what it keeps in between."""
    publisher = work(1)
    publisher.call(publish, "t", "before")
    gaps: list[Gap] = []
    with PubSub(on_node(0), check_interval=INTERVAL) as late:
        late.on_gap(gaps.append)
        publisher.call(publish, "t", "in between")
        late.subscribe("t", lambda event: None)
        await_true(lambda: bool(gaps))
        assert gaps == [Gap(GapReason.BEFORE)]


def test_a_node_that_leaves_is_a_gap(cluster: Cluster, work: StartWorker) -> None:
    """What was published there meanwhile is told when it is back, to its number."""
    here, far, beside = work(0, "t"), work(2, "t"), work(1, "t")
    far.call(publish, "t", "first")
    for worker in (here, beside, far):
        worker.call(heard, "first")
        worker.call(await_mirrors, 2)
    cluster.nodes[2].kill()
    assert here.call(heard, Gap) == ["first", Gap(GapReason.NODE)]
    assert far.call(heard, Gap)[0] == "first"
    here.call(publish, "t", "without it")
    assert beside.call(heard, "without it")[-1] == "without it"
    delivered, _ = far.call(publish, "t", "alone")
    assert delivered == 1  # itself
    cluster.restore()
    far.call(await_connected)
    far.call(publish, "t", "again")
    told = here.call(heard, "again")
    assert told[:2] == ["first", Gap(GapReason.NODE)]
    assert Gap(GapReason.MISSING, 1) in told or Gap(GapReason.OVERDUE, 1) in told
    assert told[-1] == "again"


def await_connected(notes: Notes) -> None:
    """Wait until both other nodes are connected."""
    others = notes.pubsub._open().others
    assert others is not None
    wait(notes, lambda: len(others._connected) == 2)


def test_without_its_ctdbd_a_process_is_told_a_gap(cluster: Cluster, work: StartWorker) -> None:
    """Topics go on between the processes of its node."""
    subscriber, local, far = work(0, "t"), work(0), work(1)
    far.call(publish, "t", "first")
    subscriber.call(heard, "first")
    cluster.nodes[0].kill()
    assert subscriber.call(heard, Gap) == ["first", Gap(GapReason.NODE)]
    local.call(publish, "t", "local")
    assert subscriber.call(heard, "local")[-1] == "local"


# Acknowledgements


def fail(notes: Notes) -> None:
    """Have a callback that raises."""

    def refuse(event: Event) -> None:
        raise ValueError("not with me")

    notes.pubsub.subscribe("t", refuse)


def acked(publication: Publication) -> dict[tuple[int, int], Any]:
    """By node and pid: how many callbacks have run, or the kind of error."""
    outcomes = {(dst.vnn, dst.pid): one for dst, one in publication.elsewhere.items()}
    return {key: one if isinstance(one, int) else type(one) for key, one in outcomes.items()}


def test_an_acknowledged_publication_names_the_subscribers_of_all_nodes(pubsub: PubSub, work: StartWorker) -> None:
    local, failing = work(0, "t"), work(1, first=fail)
    first, second, other = work(1, "t"), work(2, "t", "*"), work(2, "else")
    publication = pubsub.publish("t", "hello", wait="acked", timeout=PATIENCE)
    assert publication.acked == {local.pid: 1}
    assert acked(publication) == {
        (1, failing.pid): HandlerFailed,
        (1, first.pid): 1,
        (2, second.pid): 2,
        (2, other.pid): 0,
    }
    assert (publication.delivered, publication.is_complete, publication.nodes) == (4, False, {})
    assert [str(one) for one in publication.reasons()] == [
        f"a subscriber in pid 1:{failing.pid}: ValueError: not with me"
    ]
    for worker in (local, first):
        assert worker.call(so_far) == ["hello"]
    failing.kill()
    second.kill()
    publication = pubsub.publish("t", "again", wait="acked", timeout=PATIENCE)
    outcomes = acked(publication)
    assert {outcomes.pop((1, failing.pid), NoSuchProcess), outcomes.pop((2, second.pid), NoSuchProcess)} == {
        NoSuchProcess  # as a process that has just been killed is, until somebody finds its lock file free
    }
    assert outcomes == {(1, first.pid): 1, (2, other.pid): 0}
    assert publication.is_complete


def test_who_is_stopped_is_late_and_another_answers_for_its_node(pubsub: PubSub, work: StartWorker) -> None:
    workers = sorted((work(1, "t"), work(1, "t")), key=lambda one: one.pid)
    pubsub.publish("t", "first", wait="acked", timeout=PATIENCE)
    others = pubsub._open().others
    assert others is not None
    others.roll_timeout = PATIENCE
    others._silent.add(2)
    workers[0].stop()
    publication = pubsub.publish("t", "second", wait="acked", timeout=2)
    assert acked(publication) == {(1, workers[0].pid): ReplyTimeout, (1, workers[1].pid): 1}
    assert not publication.is_complete
    workers[0].resume()
    assert workers[0].call(heard, "second") == ["first", "second"]


def test_a_node_without_subscribers_is_waited_for_once(pubsub: PubSub, work: StartWorker) -> None:
    """Until somebody subscribes there, who is asked by the next publication."""
    pubsub.publish("t", "nobody", wait="acked", timeout=PATIENCE)
    others = pubsub._open().others
    assert others is not None
    others.roll_timeout = PATIENCE
    began = time.monotonic()
    assert pubsub.publish("t", "still nobody", wait="acked", timeout=PATIENCE).is_complete
    assert time.monotonic() - began < PATIENCE / 2
    worker = work(2, "t")
    publication = pubsub.publish("t", "somebody", wait="acked", timeout=PATIENCE)
    assert acked(publication) == {(2, worker.pid): 1}
    assert worker.call(so_far)[-1] == "somebody"  # what was on its way when it subscribed may have come before


def test_acknowledgements_when_a_node_is_gone(cluster: Cluster, pubsub: PubSub, work: StartWorker) -> None:
    """A node that has left counts as ended; without this node's own ctdbd nobody can say, and it is not complete."""
    near, far = work(1, "t"), work(2, "t")
    publication = pubsub.publish("t", "first", wait="acked", timeout=PATIENCE)
    assert set(acked(publication)) == {(1, near.pid), (2, far.pid)}
    cluster.nodes[2].kill()
    publication = pubsub.publish("t", "second", wait="acked", timeout=PATIENCE)
    assert acked(publication)[1, near.pid] == 1
    assert acked(publication).get((2, far.pid), NoSuchProcess) is NoSuchProcess
    assert publication.is_complete
    cluster.nodes[0].kill()
    others = pubsub._open().others
    assert others is not None
    await_true(lambda: bool(others._cluster.trouble))
    publication = pubsub.publish("t", "third", wait="acked", timeout=PATIENCE)
    assert not publication.is_complete
    assert isinstance(publication.nodes[1], TransportError)


def test_asyncio(on_node: MakeConfig, work: StartWorker) -> None:
    worker, failing = work(1, "t"), work(2, first=fail)

    async def body() -> tuple[list[Any], Publication]:
        came: list[Any] = []
        async with aio.PubSub(on_node(0), check_interval=INTERVAL) as pubsub, pubsub.events("back") as events:
            publication = await pubsub.publish("t", "hello", wait="acked", timeout=PATIENCE)
            worker.call(publish, "back", "from node 1")
            async for event in events:
                came.append(event.data)
                break
        return came, publication

    came, publication = asyncio.run(asyncio.wait_for(body(), PATIENCE))
    assert came == ["from node 1"]
    assert acked(publication) == {(1, worker.pid): 1, (2, failing.pid): HandlerFailed}


def test_a_bad_list_of_numbers_is_dropped_and_counted(pubsub: PubSub, work: StartWorker) -> None:
    pubsub.subscribe("t", lambda event: None)
    work(1).call(say_rubbish)
    await_true(lambda: pubsub._open().messaging.statistics().drops.get("a bad publication") == 2)


def say_rubbish(notes: Notes) -> None:
    from msgd.wire.ctdb import SRVID_PUBLICATIONS
    from msgd.wire.pubsub import NUMBERS, PUBLISH, Kind, pack_publish

    others = notes.pubsub._open().others
    assert others is not None
    others._send(NUMBERS, b"\1" + bytes(50), SRVID_PUBLICATIONS)
    others._send(PUBLISH, pack_publish(5000, 1, 1, b"t", Kind.TEXT, b"x"), SRVID_PUBLICATIONS)
