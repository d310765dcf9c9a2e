# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 14: the locks of a stranger decide nothing, whatever it can open and lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msgd import Config, Messaging
from tests.backends.conftest import StartPeer
from tests.support.harness import TEXT, Peer, Session, chosen_pids_reason, close, drain, is_gone, take_data
from tests.support.strangers import locking, needs_root, stranger

pytestmark = needs_root

chosen_pids = pytest.mark.skipif(chosen_pids_reason() is not None, reason=str(chosen_pids_reason()))


def lock_file(config: Config, pid: int) -> Path:
    return Path(config.lock_directory, "msg.lock", str(pid))


def use_everything(session: Session) -> list[str]:
    """Call what takes locks; the names that are found."""
    messaging = session.messaging
    messaging.add_name("somebody")
    found = list(messaging.names())
    messaging.remove_name("somebody")
    messaging.clean_up()
    return found


def test_everything_is_locked_that_can_be_opened(
    config: Config, scratch: Path, messaging: Messaging, start: StartPeer
) -> None:
    """Processes come, talk, take names, clean up and go, as if nobody was there."""
    start().kill()
    peer = start()
    peer.call(use_everything)
    with stranger(scratch, locking(scratch)) as holder:
        held = holder.hear()
        assert config.lock_directory in held
        another = start()
        messaging.send(another.server_id, TEXT, b"to another")
        messaging.send(peer.server_id, TEXT, b"to the first")
        drain(messaging)
        assert another.call(take_data, 1) == [b"to another"]
        assert peer.call(take_data, 1) == [b"to the first"]
        assert another.call(use_everything) == ["somebody"]
        assert another.call(close) == 0
        messaging.clean_up()
        assert sorted(path.name for path in Path(config.lock_directory, "msg.lock").iterdir()) == sorted(
            str(pid) for pid in (os.getpid(), peer.pid)
        )


def test_a_read_lock_makes_nobody_alive(config: Config, scratch: Path, messaging: Messaging, peer: Peer) -> None:
    """The dead stay dead, and are cleaned up."""
    messaging.send(peer.server_id, TEXT, b"hello")
    peer.kill()
    with stranger(scratch, locking(lock_file(config, peer.pid))) as holder:
        assert holder.hear()
        assert not messaging.is_alive(peer.pid)
        assert not messaging.is_alive(peer.server_id)
        assert is_gone(messaging, peer.pid)
        assert is_gone(messaging, peer.server_id)
        assert messaging.clean_up() == [peer.pid]
        assert not lock_file(config, peer.pid).exists()


@chosen_pids
def test_the_stranger_has_the_pid_of_the_dead(config: Config, scratch: Path, messaging: Messaging, peer: Peer) -> None:
    """It is not taken for the dead process, gets no message, and is not signalled: SIGUSR1 would kill it."""
    for _ in range(20):  # so that with tdb the receiver has granted a quota, and the compiled sender appends by itself
        messaging.send(peer.server_id, TEXT, b"hello")
        peer.call(take_data, 1)
    peer.kill()
    with stranger(scratch, locking(lock_file(config, peer.pid)), pid=peer.pid) as holder:
        assert holder.hear()
        assert [process.pid for process in messaging.processes()] == [os.getpid()]
        assert not messaging.is_alive(peer.server_id)
        assert is_gone(messaging, peer.server_id)
        assert is_gone(messaging, peer.pid)
        assert messaging.send_all(TEXT).delivered == 0
        assert messaging.clean_up() == [peer.pid]
        holder.stop()  # it lives
        holder.resume()


@chosen_pids
def test_a_pid_is_reused_while_its_old_file_is_locked(
    config: Config, scratch: Path, messaging: Messaging, start: StartPeer
) -> None:
    """The new process gets a file of its own; the lock stays on the one that has no name any more."""
    first = start()
    first.kill()
    with stranger(scratch, locking(lock_file(config, first.pid))) as holder:
        assert holder.hear()
        second = start(pid=first.pid)
        assert messaging.is_alive(second.server_id)
        assert not messaging.is_alive(first.server_id)
        messaging.send(second.server_id, TEXT, b"to the second")
        drain(messaging)
        assert second.call(take_data, 1) == [b"to the second"]
        assert messaging.clean_up() == []
