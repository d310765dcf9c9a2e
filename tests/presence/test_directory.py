# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Reading a rendezvous directory without joining it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgd import (
    Config,
    MessageClass,
    MessageType,
    Messaging,
    RendezvousDirectory,
    ServerID,
    TransportError,
    UnsafeDirectory,
)
from msgd.presence.lock_file import LockFile
from msgd.presence.private_lock import PrivateLock
from tests.support.harness import Channel, Child, Peer, close, no_fd_leaks


@pytest.fixture
def peer(config: Config) -> Iterator[Peer]:
    with Peer(config, listens=MessageClass.PRINT) as peer:
        yield peer


@pytest.fixture
def directory(peer: Peer, config: Config) -> Iterator[RendezvousDirectory]:
    with RendezvousDirectory(config) as directory:
        yield directory


def modification_times(path: Path) -> dict[str, int]:
    """Every path below a directory, with the time of its last modification in nanoseconds."""
    return {str(one): one.lstat().st_mtime_ns for one in path.rglob("*")}


def test_process(directory: RendezvousDirectory, peer: Peer) -> None:
    process = directory.process(peer.pid)
    assert process is not None
    assert (process.pid, process.unique_id) == (peer.pid, peer.server_id.unique_id)
    assert process.classes == MessageClass.PRINT
    assert process.messaging_type == "dgram"
    assert process.since is not None
    assert 0 <= time.time() - process.since < 3600
    assert list(directory.processes()) == [process]


def test_is_alive(directory: RendezvousDirectory, peer: Peer) -> None:
    assert directory.is_alive(peer.server_id)
    assert directory.is_alive(ServerID(peer.pid))
    assert not directory.is_alive(peer.server_id._replace(unique_id=1))
    assert not directory.is_alive(ServerID(1))
    peer.call(close)
    assert not directory.is_alive(peer.server_id)


def test_entry_of_a_dead_process(directory: RendezvousDirectory, peer: Peer) -> None:
    """It still says who the process was."""
    (alive,) = directory.entries()
    peer.kill()
    (dead,) = directory.entries()
    assert alive.is_alive
    assert not dead.is_alive
    assert dead == alive._replace(is_alive=False)
    assert dead.process is not None
    assert (dead.process.unique_id, dead.uid) == (peer.server_id.unique_id, os.geteuid())
    assert list(directory.processes()) == []


def starting(config: Config, lock_dir_fd: int, channel: Channel) -> None:
    """In a child: hold the lock file, but have no endpoint yet."""
    private = PrivateLock(os.open(config.lock_directory, os.O_RDONLY), config.lock_directory)
    LockFile(lock_dir_fd, config.lock_directory, os.getpid(), private).acquire()
    channel.send("locked")
    channel.recv()


def test_process_that_is_starting(directory: RendezvousDirectory, peer: Peer, config: Config) -> None:
    """It cannot be sent to, and it is not dead either."""
    with Messaging(config) as messaging, Child(lambda at: starting(config, directory.lock_dir_fd, at)) as child:
        assert child.hear() == "locked"
        assert not directory.is_alive(ServerID(child.pid))
        states = {entry.pid: (entry.is_alive, entry.process is None) for entry in directory.entries()}
        assert states == {peer.pid: (True, False), child.pid: (True, True)}
        assert messaging.send_all(MessageType.PRINTER_MOD).delivered == 1
        assert messaging.clean_up() == []


def test_reading_changes_nothing(directory: RendezvousDirectory, peer: Peer, config: Config) -> None:
    before = modification_times(Path(config.lock_directory))
    with no_fd_leaks(), RendezvousDirectory(config) as another:
        list(another.processes())
        list(another.entries())
        another.names()
    assert modification_times(Path(config.lock_directory)) == before
    peer.kill()
    list(directory.entries())
    assert modification_times(Path(config.lock_directory)) == before, "only a cleaner removes what the dead left"


def test_member_keeps_its_lock_when_it_reads_from_outside(directory: RendezvousDirectory, config: Config) -> None:
    with Messaging(config) as messaging:
        list(directory.processes())
        list(directory.entries())
        assert directory.process(os.getpid()) is None
        with Child(lambda channel: channel.send(_is_seen_alive(config, messaging.server_id))) as child:
            assert child.hear() is True


def _is_seen_alive(config: Config, server_id: ServerID) -> bool:
    with RendezvousDirectory(config) as directory:
        return directory.is_alive(server_id)


def test_unprivileged_user(directory: RendezvousDirectory, peer: Peer, config: Config) -> None:
    """A user who may read the lock directory sees the processes, although the socket directory is closed to it."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user: run the tests as root")
    Path(config.lock_directory).parent.chmod(0o755)

    def as_nobody(channel: Channel) -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(PermissionError):
            os.listdir(config.socket_directory)
        with RendezvousDirectory(config) as directory:
            channel.send([process.pid for process in directory.processes()])

    with Child(as_nobody) as child:
        assert child.hear() == [peer.pid]


def test_missing_directory(config: Config) -> None:
    with no_fd_leaks(), pytest.raises(TransportError, match=rf"{config.lock_directory}: No such file or directory"):
        RendezvousDirectory(config)
    assert not Path(config.lock_directory).exists()


@pytest.mark.parametrize("name", [".", "msg.lock"])
def test_directory_that_others_can_write_to(directory: RendezvousDirectory, config: Config, name: str) -> None:
    Path(config.lock_directory, name).chmod(0o777)
    with no_fd_leaks(), pytest.raises(UnsafeDirectory, match="mode 0777"):
        RendezvousDirectory(config)


def test_link_in_place_of_the_lock_files(directory: RendezvousDirectory, config: Config, scratch: Path) -> None:
    path = Path(config.lock_directory, "msg.lock")
    path.rename(scratch / "elsewhere")
    path.symlink_to(scratch / "elsewhere")
    with no_fd_leaks(), pytest.raises(TransportError, match=str(path)):
        RendezvousDirectory(config)
