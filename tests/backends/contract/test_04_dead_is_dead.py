# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 4: sending to a dead process raises NoSuchProcess at once; nothing of it outlives the next clean-up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msgd import Config, MessageType, Messaging, NoSuchProcess, ServerID
from tests.backends.conftest import MakeConfig, StartPeer
from tests.support.harness import (
    PATIENCE,
    TEXT,
    Channel,
    Child,
    Peer,
    Session,
    close,
    dead_pid,
    drain,
    fill,
    is_gone,
    reopen,
    serve,
    take_data,
)


def test_pid_without_process(messaging: Messaging) -> None:
    assert is_gone(messaging, dead_pid())
    assert not messaging.is_alive(dead_pid())


def test_process_without_messaging(messaging: Messaging) -> None:
    with Child(lambda channel: channel.recv()) as child:
        assert is_gone(messaging, child.pid)


@pytest.mark.parametrize("dst", [ServerID(0), ServerID(-1), ServerID(1 << 40), ServerID(1 << 63)])
def test_impossible_pid(messaging: Messaging, dst: ServerID) -> None:
    with pytest.raises((NoSuchProcess, ValueError)):
        messaging.send(dst, TEXT)


def test_other_node(messaging: Messaging, peer: Peer) -> None:
    for dst in (ServerID(peer.pid, vnn=3), f"3:{peer.pid}"):
        with pytest.raises(NoSuchProcess, match="node"):
            messaging.send(dst, TEXT)


@pytest.mark.parametrize("talked_before", [False, True])
def test_closed(messaging: Messaging, peer: Peer, talked_before: bool) -> None:
    """The process is alive but has closed its endpoint."""
    if talked_before:
        messaging.send(peer.server_id, TEXT, b"first")
        assert peer.call(take_data, 1) == [b"first"]
    peer.call(close)
    assert is_gone(messaging, peer.server_id)
    assert is_gone(messaging, peer.pid)
    assert not messaging.is_alive(peer.pid)


@pytest.mark.parametrize("talked_before", [False, True])
def test_killed(messaging: Messaging, peer: Peer, talked_before: bool) -> None:
    if talked_before:
        messaging.send(peer.server_id, TEXT, b"first")
        assert peer.call(take_data, 1) == [b"first"]
    peer.kill()
    assert is_gone(messaging, peer.server_id)
    assert is_gone(messaging, peer.pid)
    assert not messaging.is_alive(peer.pid)


def test_killed_while_messages_wait_for_it(messaging: Messaging, peer: Peer) -> None:
    """A queue for the receiver in this process does not hide that the receiver is dead."""
    fill(messaging, peer.server_id)
    queued = messaging.statistics().queued_messages
    peer.kill()
    assert is_gone(messaging, peer.server_id)
    assert messaging.statistics().queued_messages == 0
    assert sum(messaging.statistics().drops.values()) == queued


def test_stale_unique_id(messaging: Messaging, peer: Peer) -> None:
    stale = peer.server_id._replace(unique_id=peer.server_id.unique_id ^ 1)
    assert is_gone(messaging, stale)
    messaging.send(peer.server_id, TEXT, b"talked before")
    assert is_gone(messaging, stale)
    assert not messaging.is_alive(stale)
    assert peer.call(take_data, 1) == [b"talked before"]


def test_reopened(messaging: Messaging, peer: Peer) -> None:
    """After a process has re-opened its endpoint, its pid reaches it at once, and its old server id never again."""
    messaging.send(peer.pid, TEXT, b"before")
    assert peer.call(take_data, 1) == [b"before"]
    before = peer.server_id
    after = peer.call(reopen)
    assert after.unique_id != before.unique_id
    messaging.send(peer.pid, TEXT, b"by pid")
    assert is_gone(messaging, before)
    messaging.send(after, TEXT, b"by new id")
    drain(messaging)
    assert peer.call(take_data, 2) == [b"by pid", b"by new id"]


def test_reopened_while_messages_wait_for_it(messaging: Messaging, peer: Peer) -> None:
    """Messages queued for the closed endpoint are dropped and counted, not delivered to the new one."""
    before = peer.server_id
    fill(messaging, before)
    queued = messaging.statistics().queued_messages
    after = peer.call(reopen)
    messaging.send(after, TEXT, b"new")
    drain(messaging)
    assert peer.call(take_data, 1) == [b"new"]
    assert sum(messaging.statistics().drops.values()) == queued
    assert is_gone(messaging, before)


def test_request_to_a_process_that_dies(messaging: Messaging, peer: Peer) -> None:
    """The request fails as soon as the process is dead, not after its timeout."""
    with Child(lambda channel: kill_when_told(channel, peer.pid)) as killer:
        messaging.register(TEXT, lambda message: killer.tell("now"))
        messaging.send(messaging.server_id, TEXT, b"runs in request()'s dispatch")
        with pytest.raises(NoSuchProcess):
            messaging.request(peer.server_id, MessageType.PING, b"", MessageType.PONG, timeout=10 * PATIENCE)


def kill_when_told(channel: Channel, pid: int) -> None:
    channel.recv()
    os.kill(pid, 9)


def ended_after_answering(session: Session, dst: ServerID) -> None:
    """Answer and exit at once."""
    session.messaging.dispatch(None)
    os._exit(0)


def test_request_to_a_process_that_answers_and_dies(messaging: Messaging, peer: Peer) -> None:
    peer.begin(ended_after_answering, messaging.server_id)
    answer = messaging.request(peer.server_id, MessageType.PING, b"last words", MessageType.PONG)
    assert answer.data == b"last words"


def files(config: Config) -> dict[str, set[str]]:
    """The file names in each subdirectory of the lock directory; they are pids."""
    root = Path(config.lock_directory)
    return {path.name: {one.name for one in path.iterdir()} for path in root.iterdir() if path.is_dir()}


def test_clean_up_after_the_killed(config: Config, messaging: Messaging, start: StartPeer) -> None:
    alone = files(config)
    dead, living = [start() for _ in range(3)], start()
    living.begin(serve)
    everything = files(config)
    for peer in dead:
        peer.kill()
    assert sorted(messaging.clean_up()) == sorted(peer.pid for peer in dead)
    left = {name: {pid for pid in pids if int(pid) != living.pid} for name, pids in files(config).items()}
    assert left == alone != everything
    assert messaging.clean_up() == []
    assert {process.pid for process in messaging.processes()} == {messaging.server_id.pid, living.pid}
    assert messaging.request(living.server_id, MessageType.PING, b"", MessageType.PONG).data == b""


def test_close_leaves_nothing(make_config: MakeConfig) -> None:
    config = make_config()
    with Messaging(config):
        assert any(files(config).values())
    assert not any(files(config).values())


def test_processes(messaging: Messaging, start: StartPeer) -> None:
    one, another, dead = start(), start(), start()
    dead.kill()
    found = {process.pid: process.unique_id for process in messaging.processes()}
    assert found == {here.server_id.pid: here.server_id.unique_id for here in (messaging, one, another)}
