# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Two nodes with a network between them that loses packets and is cut: network namespaces with a pair of veth."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgd import MessageType, Messaging, NoSuchProcess, ServerID
from msgd.pubsub import Gap, GapReason
from tests.cluster.conftest import MakeConfig, StartPeer
from tests.cluster.test_topics import await_mirrors
from tests.pubsub.workers import Worker, heard, publish, so_far
from tests.support.ctdb_nodes import Cluster, await_true, missing
from tests.support.harness import PATIENCE, TEXT, Session, send_many, serve, take_data

NAMES = [f"msgd{os.getpid()}{letter}" for letter in "ab"]
ADDRESSES = ["192.0.2.1", "192.0.2.2"]


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def inside(name: str, *words: str) -> None:
    run("ip", "netns", "exec", name, *words)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Two namespaces, each with one end of a cable.  Raises CalledProcessError where the machine does not allow it."""
    try:
        for name in NAMES:
            run("ip", "netns", "add", name)
        first, second = NAMES
        run("ip", "link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            inside(name, "ip", "address", "add", f"{address}/24", "dev", "cable")
            inside(name, "ip", "link", "set", "lo", "up")
            inside(name, "ip", "link", "set", "cable", "up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    reason = missing() or (None if shutil.which("ip") else "ip not found: apt-get install iproute2")
    if reason is not None:
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="c"))
    with contextlib.ExitStack() as opened:
        opened.callback(shutil.rmtree, directory)
        try:
            opened.enter_context(network())
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces with veth here: {error.stderr.decode().strip()}")
        yield opened.enter_context(Cluster(directory, dict(zip(ADDRESSES, NAMES, strict=True))))


def test_packets_that_are_lost_are_no_messages_that_are_lost(start: StartPeer) -> None:
    """The cable is out for a moment, shorter than ctdb's patience: TCP repeats what was lost."""
    sender, receiver = start(0), start(1)
    texts = [b"%d" % one for one in range(600)]
    receiver.begin(take_data, len(texts))
    sender.call(send_many, receiver.server_id, texts[:200])
    inside(NAMES[0], "ip", "link", "set", "cable", "down")
    sender.call(send_many, receiver.server_id, texts[200:400])
    inside(NAMES[0], "ip", "link", "set", "cable", "up")
    sender.call(send_many, receiver.server_id, texts[400:])
    assert receiver.hear() == texts


@contextlib.contextmanager
def lossy() -> Iterator[None]:
    """A network that loses packets inside: of every ten one, or where the kernel has no netem, those of each burst."""
    netem, short_queue = "netem loss 10%", "tbf rate 20mbit burst 4kb limit 4kb"
    try:
        for name in NAMES:
            command = ["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "cable", "root"]
            if subprocess.run([*command, *netem.split()], capture_output=True).returncode:
                run(*command, *short_queue.split())
        yield
    finally:
        for name in NAMES:
            inside(name, "tc", "qdisc", "delete", "dev", "cable", "root")


def send_until_refused(session: Session, dst: ServerID) -> str:
    """Why a message is refused.  The first may be lost: its sender has not looked at the nodes for long."""
    reasons: list[str] = []

    def is_refused() -> bool:
        session.messaging.dispatch()
        try:
            session.messaging.send(dst, TEXT, b"not reached")
        except NoSuchProcess as error:
            reasons.append(str(error))
        return bool(reasons)

    await_true(is_refused)
    return reasons[0]


def lost(name: str) -> int:
    """The packets that this end of the cable has lost."""
    command = ["ip", "netns", "exec", name, "tc", "-s", "-j", "qdisc", "show", "dev", "cable"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return sum(int(one["drops"]) for one in shown)


def test_a_network_that_loses_packets(start: StartPeer) -> None:
    """Every message arrives, in order, both ways at a time."""
    peers = [start(0), start(1)]
    texts = [b"%d" % one + bytes(500) for one in range(2000)]
    with lossy():
        for peer, other in zip(peers, reversed(peers), strict=True):
            peer.begin(send_and_take, other.server_id, texts)
        for peer in peers:
            assert peer.hear() == texts
        assert all(lost(name) for name in NAMES)


def send_and_take(session: Session, dst: ServerID, texts: list[bytes]) -> list[bytes]:
    """Send these, and take as many."""
    send_many(session, dst, texts)
    return take_data(session, len(texts))


def test_a_partition(cluster: Cluster, on_node: MakeConfig, start: StartPeer) -> None:
    """Each side stays usable for its own processes, calls the other one disconnected, and meets it again.

    Topics, too: each side is told a gap, and afterwards how much it has missed of the other.
    """
    local, far, beside = start(0), start(1), start(1)
    with Messaging(on_node(0)) as here, Worker(on_node(0), "t") as near, Worker(on_node(1), "t") as distant:
        assert here.is_alive(far.server_id)
        for worker, own in ((near, "from 0"), (distant, "from 1")):
            worker.call(publish, "t", own)
        for worker, other in ((near, "from 1"), (distant, "from 0")):
            worker.call(heard, other)
            worker.call(await_mirrors, 1)
        inside(NAMES[0], "ip", "link", "set", "cable", "down")
        with pytest.raises(NoSuchProcess, match="ended before it answered"):
            here.request(far.server_id, TEXT, b"", TEXT + 1, timeout=PATIENCE)
        with pytest.raises(NoSuchProcess, match="is disconnected"):
            here.send(far.server_id, TEXT, b"")
        here.send(local.server_id, TEXT, b"local")
        assert local.call(take_data, 1) == [b"local"]
        for worker in (near, distant):
            assert worker.call(heard, Gap)[-1] == Gap(GapReason.NODE)
            worker.call(publish, "t", "alone")
            assert worker.call(heard, "alone")[-1] == "alone"
        beside.call(send_many, far.server_id, [b"on the other side"])
        assert far.call(take_data, 1) == [b"on the other side"]
        assert re.search("node 0 .* is disconnected", beside.call(send_until_refused, here.server_id))
        inside(NAMES[0], "ip", "link", "set", "cable", "up")
        cluster.await_ready()
        await_true(lambda: (here.dispatch(), here.is_alive(far.server_id))[1])
        far.begin(serve)
        assert here.request(far.server_id, MessageType.PING, timeout=PATIENCE).src == far.server_id
        for worker in (near, distant):
            await_true(lambda: Gap(GapReason.OVERDUE, 1) in worker.call(so_far))  # noqa: B023
