# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A process that uses msgd's library among the processes of a real Samba."""

from __future__ import annotations

import os

import pytest

from msgd import Config, Message, MessageType, Messaging, ServerID
from msgd.wire.header import HEADER_SIZE
from tests.interop.samba import Samba
from tests.support.harness import Peer, Session, dispatch_until, drain, open_fds, serve

LONG = "x" * 2500


def test_smbcontrol_ping(samba: Samba, peer: Peer) -> None:
    peer.begin(serve)
    assert samba.smbcontrol(peer.pid, "ping") == (0, f"PONG from pid {peer.pid}\n")


def test_smbcontrol_all_ping(samba: Samba, peer: Peer) -> None:
    peer.begin(serve)
    samba.smbcontrol_until({f"PONG from pid {samba.pid}", f"PONG from pid {peer.pid}"}, "all", "ping")


def test_smbcontrol_ping_of_a_dead_process(samba: Samba, peer: Peer) -> None:
    """The files that a killed msgd leaves behind do not confuse Samba."""
    peer.kill()
    status, output = samba.smbcontrol("-t", "1", peer.pid, "ping")
    assert "PONG" not in output
    assert status != 0


@pytest.mark.parametrize("size", [0, 1, 964, 965, 2500, 100_000])
def test_ping_smbd(samba: Samba, messaging: Messaging, size: int) -> None:
    """smbd echoes what was sent, whole and in fragments."""
    data = os.urandom(size)
    answer = messaging.request(samba.pid, MessageType.PING, data, MessageType.PONG)
    assert answer.data == data
    assert answer.src.pid == samba.pid
    assert answer.src.unique_id == {one.pid: one.unique_id for one in messaging.processes()}[samba.pid]
    assert answer.dst == messaging.server_id


def test_request_to_a_full_server_id(samba: Samba, messaging: Messaging) -> None:
    unique_id = {one.pid: one.unique_id for one in messaging.processes()}[samba.pid]
    dst = ServerID(samba.pid, unique_id=unique_id)
    assert messaging.request(dst, MessageType.PING, b"x", MessageType.PONG).src == dst


def test_debuglevel_of_smbd(samba: Samba, messaging: Messaging) -> None:
    answer = messaging.request(samba.pid, MessageType.REQ_DEBUGLEVEL, b"", MessageType.DEBUGLEVEL)
    assert b"all:" in answer.data


def test_burst_to_smbd(samba: Samba, messaging: Messaging) -> None:
    """A burst of more messages than its queue holds is answered completely and in order."""
    answers: list[bytes] = []
    messaging.register(MessageType.PONG, lambda message: answers.append(message.data))
    burst = [b"%d" % number + b"." * (number % 7 * 300) for number in range(1000)]
    for data in burst:
        messaging.send(samba.pid, MessageType.PING, data)
    dispatch_until(messaging, lambda: len(answers) == len(burst))
    assert answers == burst
    assert messaging.statistics().drops == {}


def take_one(session: Session, message_type: int) -> Message:
    messages: list[Message] = []
    session.messaging.register(message_type, messages.append)
    while not messages:
        session.messaging.dispatch(None)
    return messages[0]


def test_long_message_from_smbcontrol(samba: Samba, peer: Peer) -> None:
    peer.begin(take_one, MessageType.SMB_FORCE_TDIS)
    assert samba.smbcontrol(peer.pid, "close-share", LONG) == (0, "")
    message = peer.hear()
    assert message.data == LONG.encode() + b"\0"
    assert len(message.data) + HEADER_SIZE > 2 * 1000, "it arrived in three fragments"


def serve_and_count(session: Session, until: int) -> tuple[set[str], set[str], int]:
    """Dispatch until `until` messages have arrived.

    Return the descriptors that are open before and after, and the number of those passed.
    """
    messages: list[int] = []
    session.messaging.register(MessageType.REQ_POOL_USAGE, lambda message: messages.append(len(message.fds)))
    before = open_fds()
    while len(messages) < until:
        session.messaging.dispatch(None)
    return before, open_fds(), sum(messages)


def test_descriptors_of_pool_usage(samba: Samba, peer: Peer) -> None:
    """smbcontrol passes a pipe for the answer.  The pipe is closed after the handler, so smbcontrol reads EOF."""
    peer.begin(serve_and_count, 3)
    for _ in range(3):
        samba.smbcontrol("-t", "5", peer.pid, "pool-usage")
    before, after, passed = peer.hear()
    assert passed == 3
    assert after == before


def test_pool_usage_of_smbd(samba: Samba, messaging: Messaging) -> None:
    """We pass a pipe, and smbd writes its answer into it."""
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe:
        messaging.send(samba.pid, MessageType.REQ_POOL_USAGE, fds=[writer])
        os.close(writer)
        drain(messaging)
        assert b"talloc" in pipe.read()


def test_clean_up_leaves_samba_alone(samba: Samba, messaging: Messaging, config: Config) -> None:
    """Clean-up removes the files of a killed msgd process, and none of a live Samba process."""
    messaging.clean_up()
    processes = {process.pid for process in messaging.processes()}
    assert len(processes) > 2, "smbd has helpers of its own"
    with Peer(config) as peer:
        peer.kill()
        assert messaging.clean_up() == [peer.pid]
    assert {process.pid for process in messaging.processes()} == processes
    for pid in processes - {messaging.server_id.pid}:
        assert messaging.request(pid, MessageType.PING, b"", MessageType.PONG).src.pid == pid
