# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What ctdb can do to its clients: it ends, hangs, comes late, or says something that is wrong.

Nobody local notices any of it, and messages to other nodes fail with a clear error until all is well again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgd import Config, MessageType, Messaging, NoSuchProcess, QueueFull, SendStatus, ServerID, TransportError
from tests.cluster.conftest import MakeConfig, StartPeer, await_link, trouble
from tests.support.ctdb_nodes import Cluster, await_true
from tests.support.harness import PATIENCE, TEXT, Session, dispatch_until, drain, send_many, serve, take_data


@pytest.fixture(autouse=True)
def whole_again(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.restore()


def link_again(session: Session) -> None:
    """Dispatch until the peer's link is ready."""
    await_link(session.messaging)


def test_ctdbd_ends_and_comes_back(cluster: Cluster, here: Messaging, start: StartPeer) -> None:
    local, remote, answering = start(0), start(1), start(1)
    answering.begin(serve)
    watched = here.watch(answering.server_id)
    here.send(remote.server_id, TEXT, b"before")
    assert remote.call(take_data, 1) == [b"before"]  # what ctdbd has not passed on yet would be lost with it
    cluster.nodes[0].kill()
    await_link(here, ready=False)
    for _ in range(2):
        with pytest.raises(TransportError, match="not connected to ctdbd"):
            here.send(remote.server_id, TEXT, b"meanwhile")
    with pytest.raises(TransportError, match="not connected to ctdbd"):
        here.is_alive(remote.server_id)
    assert here.send_all(TEXT, b"to all").delivered == 1
    assert here.send(local.server_id, TEXT, b"local") is SendStatus.SENT  # its address has the number of this node
    assert local.call(take_data, 2) == [b"to all", b"local"]
    cluster.restore()
    await_link(here)
    assert here.server_id.vnn == 0
    here.send(remote.server_id, TEXT, b"after")
    assert remote.call(take_data, 1) == [b"after"]
    assert here.request(answering.server_id, MessageType.PING, timeout=PATIENCE).src == answering.server_id
    answering.kill()
    dispatch_until(here, lambda: select.select([watched], [], [], 0)[0])
    os.close(watched)
    assert here.statistics().drops == {}


def test_a_node_that_ends(cluster: Cluster, here: Messaging, start: StartPeer) -> None:
    """Its processes have ended, for this node; they are there again when it is."""
    remote, other = start(2), start(1)
    watched = here.watch(remote.server_id)
    cluster.nodes[2].kill()
    await_true(lambda: _fails(here, remote.server_id))  # which does not dispatch
    dispatch_until(here, lambda: select.select([watched], [], [], 0)[0])
    os.close(watched)
    assert not here.is_alive(remote.server_id)
    with pytest.raises(NoSuchProcess, match=r"node 2 \(127.*\) is disconnected"):
        here.send(remote.server_id, TEXT, b"")
    assert here.send_all(TEXT, b"to all").nodes == {1: None}
    assert other.call(take_data, 1) == [b"to all"]
    remote.begin(link_again)
    cluster.restore()
    remote.hear()
    await_true(lambda: _is_sent(here, remote.server_id))
    assert remote.call(take_data, 1) == [b"again"]


def _fails(messaging: Messaging, dst: ServerID) -> bool:
    """Whether sending raises; what ctdb takes before it knows that the node has ended is lost."""
    try:
        messaging.send(dst, TEXT, b"lost")
    except NoSuchProcess:
        return True
    return False


def _is_sent(messaging: Messaging, dst: ServerID) -> bool:
    messaging.dispatch()
    with contextlib.suppress(NoSuchProcess):
        messaging.send(dst, TEXT, b"again")
        return True
    return False


def _fill(messaging: Messaging, dst: ServerID) -> int:
    """Send until the queue is full; the number of messages."""
    number = 0
    with contextlib.suppress(QueueFull):
        while True:
            messaging.send(dst, TEXT, b"%06d" % number + bytes(50_000))
            number += 1
    return number


def test_a_node_that_hangs(cluster: Cluster, here: Messaging, start: StartPeer) -> None:
    """It is like a slow one until ctdb calls it disconnected: after 4 seconds here, after 28 by ctdb's defaults."""
    remote = start(2)
    began = time.monotonic()
    cluster.nodes[2].hang()
    assert here.send(remote.server_id, TEXT, b"late or never") is SendStatus.SENT
    with pytest.raises(NoSuchProcess, match="ended before it answered"):
        here.request(remote.server_id, MessageType.PING, timeout=PATIENCE)
    assert 1 < time.monotonic() - began < PATIENCE
    with pytest.raises(NoSuchProcess, match="is disconnected"):
        here.send(remote.server_id, TEXT, b"")


def test_this_nodes_ctdbd_hangs(cluster: Cluster, on_node: MakeConfig, start: StartPeer) -> None:
    """What it does not take waits here up to the bound; then all of it arrives, in order."""
    config = on_node(0, send_queue_messages=20, ctdb_timeout=200)
    local, remote = start(0), start(1)
    with Messaging(config) as here:
        cluster.nodes[0].hang()
        with pytest.raises(TransportError, match=r"no answer within 0\.2 seconds"):
            here.is_alive(remote.server_id)
        number = _fill(here, remote.server_id)
        assert here.pending(remote.server_id) == here.statistics().queued_messages == 20
        with pytest.raises(QueueFull, match=r"ctdbd at .* does not read: 20 messages"):
            here.send(remote.server_id, TEXT, b"", timeout=0.05)
        assert here.send(remote.server_id, TEXT, b"%06d" % (number - 1) + bytes(50_000), duplicates_allowed=False) is (
            SendStatus.MERGED
        )
        here.send(local.server_id, TEXT, b"local")
        assert local.call(take_data, 1) == [b"local"]
        remote.begin(take_data, number)
        cluster.nodes[0].resume()
        drain(here)
        assert [data[:6] for data in remote.hear()] == [b"%06d" % one for one in range(number)]


def test_closing_does_not_wait_for_ever(cluster: Cluster, on_node: MakeConfig, start: StartPeer) -> None:
    remote = start(1)
    here = Messaging(on_node(0, close_timeout=0.1))
    cluster.nodes[0].hang()
    with contextlib.suppress(QueueFull):
        while here.statistics().queued_messages < 5:
            here.send(remote.server_id, TEXT, bytes(50_000))
    began = time.monotonic()
    assert here.close() == 5
    assert time.monotonic() - began < PATIENCE / 2


def test_ctdbd_ends_while_messages_wait_and_comes_later(
    cluster: Cluster, on_node: MakeConfig, start: StartPeer
) -> None:
    """What waits is counted.  A process that opens without ctdbd works locally, and gets its number later."""
    remote = start(1)
    cluster.nodes[0].hang()
    with Messaging(on_node(0, send_queue_messages=20, ctdb_timeout=50)) as here:
        assert "has not answered" in trouble(here) or "no answer" in trouble(here)
    cluster.nodes[0].resume()
    with Messaging(on_node(0, send_queue_messages=20)) as here:
        cluster.nodes[0].hang()
        assert _fill(here, remote.server_id) > 20
        cluster.nodes[0].kill()
        await_link(here, ready=False)
        assert here.statistics().drops == {"lost with the connection to ctdbd": 20}
        assert here.statistics().queued_messages == 0
    cluster.nodes[0].socket.unlink(missing_ok=True)
    with Messaging(on_node(0)) as here:
        local = start(0)
        assert here.server_id.vnn == local.server_id.vnn == 0xFFFFFFFF
        assert "no such socket" in trouble(here)
        here.add_name("early")
        here.send(local.server_id, TEXT, b"local")
        assert local.call(take_data, 1) == [b"local"]
        with pytest.raises(TransportError, match=r"is ctdb\.service running"):
            here.send(remote.server_id, TEXT, b"")
        cluster.restore()
        await_link(here)
        assert here.server_id.vnn == 0
        assert here.lookup("early") == [here.server_id]
        local.begin(serve)
        assert here.request(local.server_id, MessageType.PING, timeout=PATIENCE).data == b""
        await_true(lambda: _is_sent(here, remote.server_id))
        assert remote.call(take_data, 1) == [b"again"]
        here.remove_name("early")
        assert here.lookup("early") == []


@contextlib.contextmanager
def recovery(cluster: Cluster) -> Iterator[None]:
    """A recovery that is in progress inside: it waits for a lock on one of ctdb's databases."""
    node = cluster.nodes[0]
    assert node.ctdb("attach", "held.tdb", "persistent") == (0, "")
    [database] = (node.directory / "persistent").glob("held.tdb*")
    with database.open("r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        recovering = threading.Thread(target=node.ctdb, args=("recover",))
        recovering.start()
        try:
            await_true(lambda: "RECOVERY (1)" in cluster.nodes[1].ctdb("status")[1])
            yield
            assert "RECOVERY (1)" in cluster.nodes[1].ctdb("status")[1]
        finally:
            held.close()
            recovering.join()


def test_a_recovery_stops_no_message(cluster: Cluster, on_node: MakeConfig, start: StartPeer) -> None:
    """Neither those of processes that were there before, nor of one that comes meanwhile."""
    sender, remote, answering = start(0), start(1), start(2)
    answering.begin(serve)
    with recovery(cluster), Messaging(on_node(0)) as here:
        remote.begin(take_data, 1002)
        sender.call(send_many, remote.server_id, [b"%d" % one for one in range(1000)])
        here.send(remote.server_id, TEXT, b"from a newcomer")
        assert here.is_alive(remote.server_id)
        assert here.request(answering.server_id, MessageType.PING, timeout=PATIENCE).src == answering.server_id
        assert here.send_all(TEXT, b"to all").nodes == {1: None, 2: None}
        came = remote.hear()
        assert [data for data in came if data.isdigit()] == [b"%d" % one for one in range(1000)]
        assert sorted(data for data in came if not data.isdigit()) == [b"from a newcomer", b"to all"]


class Impostor:
    """Listens where ctdbd should, and says what it is told."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.create_server(str(path), family=socket.AF_UNIX)

    def say(self, messaging: Messaging, data: bytes) -> None:
        """Accept a connection, send the data, and wait until the other side has ended it."""
        connection, _ = self._listener.accept()
        with contextlib.closing(connection):
            connection.sendall(data)
            connection.setblocking(False)
            await_true(lambda: (messaging.dispatch(), _is_ended(connection))[1])

    def close(self) -> None:
        self._listener.close()


def _is_ended(connection: socket.socket) -> bool:
    try:
        while connection.recv(1 << 16):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("data", [b"x" * 64, b"\0" * 64, b"\xff" * 44], ids=["text", "zeros", "ones"])
def test_something_else_listens_there(scratch: Path, data: bytes) -> None:
    """The connection ends at the first wrong packet; local messages go on."""
    path = scratch / "socket"
    with contextlib.closing(Impostor(path)) as impostor:
        config = Config(
            messaging_type="dgram", lock_directory=scratch, clustering=True, ctdbd_socket=str(path), ctdb_timeout=1000
        )
        with Messaging(config) as here:
            assert trouble(here) == "ctdbd has not answered yet"
            impostor.say(here, data)
            assert "a packet of" in trouble(here)
            with pytest.raises(TransportError, match="a packet of"):
                here.send("1:1", TEXT, b"")
            here.send(here.server_id, TEXT, b"local")
            assert here.dispatch() == 0


def test_no_answer_at_all(scratch: Path) -> None:
    path = scratch / "socket"
    with contextlib.closing(Impostor(path)):
        config = Config(
            messaging_type="dgram", lock_directory=scratch, clustering=True, ctdbd_socket=str(path), ctdb_timeout=50
        )
        with Messaging(config) as here:
            await_true(lambda: (here.dispatch(), "no answer within 0.05" in trouble(here))[1])
