"""This process's place in a directory: when the others see it, and how it sees them."""

from __future__ import annotations

import os
import resource

import pytest

from msgd import Config, ServerID, TransportError
from msgd.presence import Presence
from msgd.presence.membership import new_unique_id
from tests.presence.support import live, lock_path
from tests.support.harness import Channel, Child, no_fd_leaks


def test_a_process_is_not_here_before_it_can_be_reached(config: Config) -> None:
    presence = Presence(config)
    with Child(lambda channel: see(config, os.getppid(), channel)) as child:
        assert child.hear() is None
        presence.announce()
        child.tell("look again")
        assert child.hear() == presence.unique_id
    presence.close()


def see(config: Config, pid: int, channel: Channel) -> None:
    """A process that looks for another one, twice."""
    presence = Presence(config)
    for _ in range(2):
        process = presence.process(pid)
        channel.send(process and process.unique_id)
        if process is None:
            channel.recv()
    presence.close()


def test_release_at_close(config: Config) -> None:
    presence = Presence(config)
    with Child(lambda channel: live(config, channel)) as child:
        unique_id = child.hear()
        process = presence.process(child.pid)
        assert process is not None
        assert (process.pid, process.unique_id) == (child.pid, unique_id)
        assert presence.is_alive(ServerID(child.pid))
        assert presence.is_alive(ServerID(child.pid, unique_id=unique_id))
        assert not presence.is_alive(ServerID(child.pid, unique_id=unique_id ^ 1))
        child.tell("go")
        assert child.hear() == "gone"
        assert presence.process(child.pid) is None
        assert not lock_path(config, child.pid).exists()
    presence.close()
    presence.close()
    assert os.listdir(lock_path(config).parent) == []


def test_unique_ids() -> None:
    ids = {new_unique_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(0 < one < 0xFFFFFFFFFFFFFFFF for one in ids)


def test_nothing_is_left_open(config: Config) -> None:
    with no_fd_leaks():
        presence = Presence(config)
        presence.process(1)
        list(presence.processes())
        presence.close()


def test_no_descriptors_left_is_no_dead_process(config: Config) -> None:
    """A process that cannot open the lock file says so, and does not think its peer dead."""
    with Child(lambda channel: live(config, channel)) as child:
        child.hear()
        presence = Presence(config)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(TransportError, match="Too many open files"):
                presence.process(child.pid)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        presence.close()
