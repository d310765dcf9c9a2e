# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Messages between processes on the nodes of a cluster of three real ctdbd, all of which live."""

from __future__ import annotations

import os
import select
import threading

import pytest

from msgd import (
    BackendUnavailable,
    Config,
    Message,
    MessageClass,
    MessageTooLarge,
    MessageType,
    Messaging,
    NoHandler,
    NoSuchProcess,
    ReplyTimeout,
    SendStatus,
    ServerID,
)
from msgd.native import native
from tests.cluster.conftest import MakeConfig, StartPeer
from tests.support.harness import (
    PATIENCE,
    TEXT,
    Peer,
    Session,
    close,
    dispatch_until,
    drain,
    no_fd_leaks,
    send_many,
    serve,
    take,
    take_data,
)

NUMBER = int(os.environ.get("MSGD_CLUSTER_MESSAGES", "5000"))
"""Messages between two nodes; a storm has 100,000."""

PROCESSES = int(os.environ.get("MSGD_CLUSTER_PROCESSES", "4"))
"""Processes on each of two nodes that send to each other; a storm has 50."""


def answer_texts(session: Session) -> None:
    """Answer each TEXT with one of the same data, without end."""
    session.messaging.register(TEXT, lambda message: session.messaging.reply(message, TEXT + 1, message.data))
    serve(session)


@pytest.mark.parametrize("messaging_type", ["dgram", "stream"])
def test_order_and_count(on_node: MakeConfig, start: StartPeer, messaging_type: str) -> None:
    sender, receiver = start(0, messaging_type=messaging_type), start(1, messaging_type=messaging_type)
    assert (sender.server_id.vnn, receiver.server_id.vnn) == (0, 1)
    assert str(receiver.server_id).startswith(f"1:{receiver.pid}/")
    texts = [b"%d" % one for one in range(NUMBER)]
    receiver.begin(take_data, NUMBER)
    sender.call(send_many, receiver.server_id, texts)
    assert receiver.hear() == texts
    [message] = _from(sender, receiver)
    assert (message.src, message.dst) == (sender.server_id, receiver.server_id)


def _from(sender: Peer, receiver: Peer) -> list[Message]:
    receiver.begin(take, 1)
    sender.call(send_many, receiver.server_id, [b"last"])
    messages: list[Message] = receiver.hear()
    return messages


@pytest.mark.parametrize("size", [0, 1, 70_000, 16 << 20])
def test_sizes(here: Messaging, start: StartPeer, size: int) -> None:
    peer = start(1)
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    peer.begin(take_data, 2)
    here.send(peer.server_id, TEXT, data)
    here.send(peer.server_id, TEXT, b"behind it")
    drain(here)
    assert peer.hear() == [data, b"behind it"]
    with pytest.raises(MessageTooLarge, match="max message size"):
        here.send(peer.server_id, TEXT, bytes((16 << 20) + 1))


def test_a_message_that_is_too_long_for_the_receiver_is_counted(here: Messaging, start: StartPeer) -> None:
    peer = start(1, max_message_size=1024, send_queue_bytes=1024)
    here.send(peer.server_id, TEXT, bytes(5000))
    here.send(peer.server_id, TEXT, b"short")
    assert peer.call(take_data, 1) == [b"short"]
    assert peer.call(_drops) == {"too long": 1}


def _drops(session: Session) -> dict[str, int]:
    return dict(session.messaging.statistics().drops)


def test_a_broadcast_reaches_all_nodes_once(here: Messaging, start: StartPeer) -> None:
    peers = [start(0), start(1), start(1), start(2)]
    sent = here.send_all(TEXT, b"everybody")
    assert (sent.delivered, sent.failures, sent.nodes) == (1, {}, {1: None, 2: None})
    many = here.send_all_many([(TEXT, b"one"), (TEXT, b"two")])
    assert (many.delivered, many.nodes) == (1, {1: None, 2: None})
    for peer in peers:
        here.send(peer.server_id, TEXT, b"the last")
        assert peer.call(take_data, 4) == [b"everybody", b"one", b"two", b"the last"]
    here.dispatch()
    assert here.statistics().received == 0


def test_a_broadcast_of_a_class_nobody_listens_to_is_no_drop(here: Messaging, on_node: MakeConfig) -> None:
    with Peer(on_node(1), listens=MessageClass.GENERAL) as peer:
        here.send_all(MessageType.PRINTER_DRVUPGRADE, b"")
        here.send(peer.server_id, TEXT, b"the last")
        assert peer.call(take_data, 1) == [b"the last"]
        assert peer.call(_drops) == {}


def test_requests(here: Messaging, start: StartPeer) -> None:
    peer = start(1)
    peer.begin(answer_texts)
    answer = here.request(peer.server_id, TEXT, b"hello", TEXT + 1, timeout=PATIENCE)
    assert (answer.src, answer.dst, answer.data) == (peer.server_id, here.server_id, b"hello")
    assert here.request(f"1:{peer.pid}", MessageType.PING, b"x", timeout=PATIENCE).data == b"x"
    with pytest.raises(NoHandler):
        here.request(peer.server_id, TEXT + 2, b"", TEXT + 3, timeout=PATIENCE)
    with pytest.raises(NoSuchProcess, match="no such task"):
        here.request(peer.server_id._replace(task_id=77), MessageType.PING, timeout=PATIENCE)


def test_a_request_to_a_process_that_is_not_there_fails_at_once(here: Messaging, start: StartPeer) -> None:
    peer = start(1)
    for gone in (peer.server_id._replace(unique_id=5), ServerID(here.server_id.pid, 0, 2), "1:2147483647"):
        with pytest.raises(NoSuchProcess):
            here.request(gone, MessageType.PING, timeout=PATIENCE)
        assert not here.is_alive(gone)
        with pytest.raises(NoSuchProcess):
            here.watch(gone)
    for nowhere in (f"7:{peer.pid}", "4000000000:1"):
        with pytest.raises(NoSuchProcess, match="no node"):
            here.send(nowhere, TEXT, b"")
        assert not here.is_alive(nowhere)


def test_only_the_process_asked_answers(here: Messaging, start: StartPeer) -> None:
    """A process on another node may have the pid of the one asked."""
    asked, other = start(1), start(2)
    other.call(_forge, here.server_id, asked.pid)
    with pytest.raises(ReplyTimeout):
        here.request(asked.server_id, MessageType.PING, timeout=0.2)


def _forge(session: Session, dst: ServerID, pid: int) -> None:
    """Send a PONG as a process with that pid on node 2."""
    endpoint = session.messaging._endpoint
    endpoint.send(dst, ServerID(pid, 0, 2), MessageType.PONG, b"not from there")


def test_the_end_of_a_process(here: Messaging, start: StartPeer) -> None:
    peer, asked = start(1), start(1)
    with no_fd_leaks():
        assert here.is_alive(peer.server_id)
        watched, closed = here.watch(peer.server_id), here.watch(peer.server_id)
        os.close(closed)
        assert not select.select([watched], [], [], 0)[0]
        peer.kill()
        dispatch_until(here, lambda: select.select([watched], [], [], 0)[0])
        assert not here.is_alive(peer.server_id)
        os.close(watched)
        threading.Timer(0.1, asked.kill).start()
        with pytest.raises(NoSuchProcess, match="ended before it answered"):
            here.request(asked.server_id, TEXT, b"", TEXT + 1, timeout=PATIENCE)
        here._endpoint.cluster._watches.check()  # type: ignore[union-attr]


def test_what_does_not_go_to_another_node(here: Messaging, start: StartPeer, on_node: MakeConfig) -> None:
    with pytest.raises(MessageTooLarge, match="another node"):
        here.send(start(1).server_id, TEXT, b"", fds=(0,))
    with pytest.raises(BackendUnavailable, match="dgram or stream"):
        Messaging(on_node(1, messaging_type="tdb"))
    with (
        Messaging(Config(lock_directory=f"{here.config.lock_directory}-alone", messaging_type="dgram")) as alone,
        pytest.raises(NoSuchProcess, match="not clustered"),
    ):
        alone.send("1:1", TEXT, b"")


def test_this_node_has_two_numbers(here: Messaging, start: StartPeer) -> None:
    peer = start(0)
    for vnn in (0, 0xFFFFFFFF):
        address = peer.server_id._replace(vnn=vnn)
        assert here.is_alive(address)
        assert here.send(address, TEXT, b"%d" % vnn) is SendStatus.SENT
        os.close(here.watch(address))
    assert peer.call(take_data, 2) == [b"0", b"4294967295"]
    peer.begin(answer_texts)
    for vnn in (0, 0xFFFFFFFF):
        address = peer.server_id._replace(vnn=vnn)
        assert here.request(address, TEXT, b"x", TEXT + 1, timeout=PATIENCE).src == peer.server_id


@pytest.mark.skipif(native is None, reason="the compiled hot path is not there: install a C compiler and run make")
def test_local_messages_take_the_compiled_path(here: Messaging, start: StartPeer) -> None:
    """Whichever way the local address is written; messages to other nodes do not."""
    local, remote = start(0), start(1)
    sender = here._endpoint.plain_sender
    assert sender is not None
    assert sender.node == 0
    for vnn in (0, 0xFFFFFFFF):
        address = local.server_id._replace(vnn=vnn)
        here.send(address, TEXT, b"finds the destination")
        before = sender.sent
        here.send(address, TEXT, b"plain")
        assert sender.sent == before + 1
    here.send(remote.server_id, TEXT, b"far")
    here.send(remote.server_id, TEXT, b"far")
    assert sender.sent == before + 1
    assert local.call(take_data, 4)[-1] == b"plain"
    assert remote.call(take_data, 2) == [b"far", b"far"]


def test_a_flood_of_local_messages_does_not_hold_up_those_of_other_nodes(here: Messaging, start: StartPeer) -> None:
    """In each of these rounds a local message has come."""
    remote = start(1)
    texts: list[Message] = []
    here.register(TEXT, texts.append)
    remote.call(send_many, here.server_id, [b"far"])
    assert here._endpoint.cluster is not None
    assert select.select([here._endpoint.cluster._link.fileno()], [], [], PATIENCE)[0]
    for _ in range(100):
        here.send(here.server_id, TEXT, b"local")
        here.dispatch()
    assert sum(message.data == b"far" for message in texts) == 1


def test_names_are_of_this_node(here: Messaging, start: StartPeer) -> None:
    here.add_name("printer")
    peer = start(0)
    assert peer.call(_lookup, "printer") == [here.server_id]
    assert start(1).call(_lookup, "printer") == []
    here.remove_name("printer")
    assert here.lookup("printer") == []


def _lookup(session: Session, name: str) -> list[ServerID]:
    return session.messaging.lookup(name)


def test_a_forked_child_has_its_own_connection(here: Messaging, start: StartPeer) -> None:
    peer = start(1)
    parent_end, child_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            here.reinit()
            here.send(peer.server_id, TEXT, str(here.server_id).encode())
            here.close()
            status = 0
        finally:
            os._exit(status)
    os.close(parent_end)
    os.close(child_end)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    [data] = peer.call(take_data, 1)
    assert data.startswith(b"0:%d/" % pid)
    here.send(peer.server_id, TEXT, b"from the parent")
    assert peer.call(take_data, 1) == [b"from the parent"]


def test_closing_loses_nothing(start: StartPeer) -> None:
    sender, receiver = start(0), start(1)
    receiver.begin(take_data, 1000)
    assert sender.call(_send_and_close, receiver.server_id, 1000) == 0
    sender.kill()
    assert receiver.hear() == [b"%d" % one for one in range(1000)]


def _send_and_close(session: Session, dst: ServerID, number: int) -> int:
    for one in range(number):
        session.messaging.send(dst, TEXT, b"%d" % one)
    return close(session)


def test_threads(here: Messaging, start: StartPeer) -> None:
    """The background dispatcher serves the link, too; other threads ask and send beside it."""
    peer = start(1)
    peer.begin(answer_texts)
    wrong: list[object] = []

    def ask(name: int) -> None:
        for number in range(50):
            text = b"%d %d" % (name, number)
            answer = here.request(peer.server_id, TEXT, text, TEXT + 1, timeout=PATIENCE)
            if answer.data != text:
                wrong.append(answer)

    here.start()
    threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    here.stop()
    assert wrong == []


def test_many_processes(start: StartPeer) -> None:
    """Each process of two nodes sends to each of the other node; all get all, in order."""
    nodes = [[start(number) for _ in range(PROCESSES)] for number in (0, 1)]
    for number, peers in enumerate(nodes):
        addresses = [other.server_id for other in nodes[1 - number]]
        for peer in peers:
            peer.begin(_send_and_take, addresses, 20)
    for number, peers in enumerate(nodes):
        senders = [other.server_id for other in nodes[1 - number]]
        for peer in peers:
            assert peer.hear() == {sender: list(range(20)) for sender in senders}


def _send_and_take(session: Session, others: list[ServerID], number: int) -> dict[ServerID, list[int]]:
    for one in range(number):
        for other in others:
            session.messaging.send(other, TEXT, b"%d" % one, timeout=PATIENCE)
    got: dict[ServerID, list[int]] = {other: [] for other in others}
    for message in take(session, number * len(others)):
        got[message.src].append(int(message.data))
    drain(session.messaging)
    return got
