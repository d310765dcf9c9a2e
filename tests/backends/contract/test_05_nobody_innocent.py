# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 5: the new owner of a reused pid is never signalled, and never receives messages of the old one."""

from __future__ import annotations

import fcntl
import signal
from pathlib import Path

import pytest

from msgd import Config, MessageType, Messaging, NoSuchProcess
from tests.backends.conftest import StartPeer
from tests.support.harness import TEXT, Channel, Child, Peer, chosen_pids_reason, drain, fill, is_gone, take_data


@pytest.fixture
def chosen_pids() -> None:
    reason = chosen_pids_reason()
    if reason:
        pytest.skip(reason)


def fragile(channel: Channel) -> None:
    """A process that any signal kills or stops: it catches and ignores none."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if number < signal.SIGRTMIN:
            signal.signal(number, signal.SIG_DFL)
    channel.send("ready")
    channel.send(channel.recv())


@pytest.mark.usefixtures("chosen_pids")
def test_pid_reused_by_a_stranger(messaging: Messaging, peer: Peer) -> None:
    """An unrelated process gets the pid of a dead peer while the files of the peer still exist."""
    fill(messaging, peer.pid)
    peer.kill()
    with Child(fragile, pid=peer.pid) as stranger:
        assert stranger.pid == peer.pid
        assert stranger.hear() == "ready"
        assert is_gone(messaging, peer.server_id)
        assert is_gone(messaging, peer.pid)
        assert messaging.processes() == [p for p in messaging.processes() if p.pid == messaging.server_id.pid]
        messaging.send_all(TEXT, b"to all")
        assert messaging.clean_up() == [peer.pid]
        stranger.tell("alive")
        assert stranger.hear() == "alive"
        assert stranger.wait() == 0


@pytest.mark.usefixtures("chosen_pids")
def test_pid_reused_by_another_peer(messaging: Messaging, start: StartPeer) -> None:
    """The new peer receives what is sent to it, and nothing that was sent to or queued for the old one."""
    first = start()
    fill(messaging, first.pid)
    first.kill()
    second = start(pid=first.pid)
    assert second.server_id.pid == first.pid
    assert second.server_id.unique_id != first.server_id.unique_id
    assert is_gone(messaging, first.server_id)
    messaging.send(second.pid, TEXT, b"by pid")
    messaging.send(second.server_id, TEXT, b"by server id")
    drain(messaging)
    assert second.call(take_data, 2) == [b"by pid", b"by server id"]


@pytest.mark.usefixtures("chosen_pids")
def test_pid_reused_between_queueing_and_dispatch(messaging: Messaging, start: StartPeer) -> None:
    first = start()
    fill(messaging, first.server_id)
    first.kill()
    second = start(pid=first.pid)
    messaging.dispatch()
    assert messaging.statistics().queued_messages == 0
    messaging.send(second.server_id, TEXT, b"to the second")
    assert second.call(take_data, 1) == [b"to the second"]


def holding_a_lock(path: Path, channel: Channel) -> None:
    with path.open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        channel.send("locked")
        channel.recv()


def test_lock_file_locked_by_another_process(config: Config, messaging: Messaging, peer: Peer) -> None:
    """A lock of another process on a dead peer's lock file does not make the peer or its pid alive."""
    peer.kill()
    path = Path(config.lock_directory, "msg.lock", str(peer.pid))
    with Child(lambda channel: holding_a_lock(path, channel)) as holder:
        assert holder.hear() == "locked"
        assert is_gone(messaging, peer.pid)
        assert not messaging.is_alive(peer.pid)
        assert [process.pid for process in messaging.processes()] == [messaging.server_id.pid]
        assert messaging.clean_up() == []


def test_living_processes_are_not_cleaned_up(messaging: Messaging, start: StartPeer) -> None:
    """Stopped processes are alive, too."""
    peer = start()
    peer.stop()
    assert messaging.clean_up() == []
    messaging.send(peer.server_id, TEXT, b"still there")
    peer.resume()
    assert peer.call(take_data, 1) == [b"still there"]
    assert messaging.is_alive(peer.server_id)
    assert messaging.is_alive(messaging.server_id)


def test_request_to_a_stale_server_id(messaging: Messaging, peer: Peer) -> None:
    """It is refused at once, although a process with that pid is alive."""
    stale = peer.server_id._replace(unique_id=peer.server_id.unique_id ^ 1)
    with pytest.raises(NoSuchProcess):
        messaging.request(stale, MessageType.PING, b"", MessageType.PONG)
