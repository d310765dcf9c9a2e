# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A member of a directory: when other processes see it, and what it sees of them."""

from __future__ import annotations

import os
import resource

import pytest

from msgd import Config, ServerID, TransportError
from msgd.presence import Presence
from msgd.presence.membership import new_unique_id
from tests.presence.support import be_member, lock_path
from tests.support.harness import Channel, Child, no_fd_leaks


def test_not_visible_before_announce(config: Config) -> None:
    presence = Presence(config)
    with Child(lambda channel: report(config, os.getppid(), channel)) as child:
        assert child.hear() is None
        presence.announce()
        child.tell("read it again")
        assert child.hear() == presence.unique_id
    presence.close()


def report(config: Config, pid: int, channel: Channel) -> None:
    """In a child: report the unique id of `pid`; if it is not there, wait to be told and try again."""
    presence = Presence(config)
    for _ in range(2):
        process = presence.process(pid)
        channel.send(process and process.unique_id)
        if process is None:
            channel.recv()
    presence.close()


def test_member_is_alive_until_it_closes(config: Config) -> None:
    presence = Presence(config)
    with Child(lambda channel: be_member(config, channel)) as child:
        unique_id = child.hear()
        process = presence.process(child.pid)
        assert process is not None
        assert (process.pid, process.unique_id) == (child.pid, unique_id)
        assert presence.is_alive(ServerID(child.pid))
        assert presence.is_alive(ServerID(child.pid, unique_id=unique_id))
        assert not presence.is_alive(ServerID(child.pid, unique_id=unique_id ^ 1))
        child.tell("leave")
        assert child.hear() == "left"
        assert presence.process(child.pid) is None
        assert not lock_path(config, child.pid).exists()
    presence.close()
    presence.close()
    assert os.listdir(lock_path(config).parent) == []


def test_unique_ids_are_distinct_and_address_one_process() -> None:
    ids = {new_unique_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(0 < one < 0xFFFFFFFFFFFFFFFF for one in ids)


def test_close_leaves_no_descriptor(config: Config) -> None:
    with no_fd_leaks():
        presence = Presence(config)
        presence.process(1)
        list(presence.processes())
        presence.close()


def test_running_out_of_descriptors_does_not_mean_that_the_peer_is_dead(config: Config) -> None:
    """A process that cannot open the lock file reports that, instead of calling its peer dead."""
    with Child(lambda channel: be_member(config, channel)) as child:
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
