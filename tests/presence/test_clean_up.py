# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Cleaning up after dead processes while others start and live: no living process ever loses a file."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from msgd import Config, Messaging
from msgd.presence import Presence
from tests.support.harness import Channel, Child, chosen_pids_reason, dead_pid, no_fd_leaks

CLEANERS = 3
ROUNDS = 150


def clean(config: Config, channel: Channel) -> None:
    """In a child: clean up in a loop until told to stop; reports how many dead processes it found."""
    presence = Presence(config)
    channel.send("ready")
    found = 0
    while not channel.poll():
        found += len(presence.clean_up((), lambda pid: None))
    presence.close()
    channel.send(found)


def live(config: Config, channel: Channel) -> None:
    """In a child: start, check repeatedly that our own files are in their places, then die by SIGKILL."""
    messaging = Messaging(config)
    presence = messaging._endpoint.presence
    name = str(os.getpid())
    ours = os.fstat(presence._lock_file._fd)
    for _ in range(20):
        there = os.stat(name, dir_fd=presence.lock_dir_fd)
        assert (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino), "our lock file was replaced"
        os.stat(name, dir_fd=presence.socket_dir_fd)
    messaging.send(os.getpid(), 0xF100)
    channel.send(messaging.server_id.unique_id)
    os.kill(os.getpid(), signal.SIGKILL)


def test_starting_while_others_clean_up(config: Config) -> None:
    """Processes start with the pids of dead ones, while cleaners remove what those left."""
    reuse = chosen_pids_reason() is None
    pids = [dead_pid() for _ in range(4)] if reuse else [None] * 4
    with Messaging(config) as messaging:
        cleaners = [Child(lambda channel: clean(config, channel)) for _ in range(CLEANERS)]
        try:
            for cleaner in cleaners:
                assert cleaner.hear() == "ready"
            for number in range(ROUNDS):
                with Child(lambda channel: live(config, channel), pid=pids[number % 4]) as child:
                    assert child.hear() != 0
                    assert child.wait() == -signal.SIGKILL
            for cleaner in cleaners:
                cleaner.tell("stop")
            found = [cleaner.hear() for cleaner in cleaners]
        finally:
            for cleaner in cleaners:
                cleaner.kill()
        assert sum(found) > 0, "the cleaners found nothing, so there was no race to test"
        messaging.clean_up()
        assert os.listdir(Path(config.lock_directory, "msg.lock")) == [str(os.getpid())]
        assert os.listdir(config.socket_directory) == [str(os.getpid())]


def test_what_is_removed_and_what_stays(config: Config) -> None:
    """Sockets without lock file and lock files without socket go; what is not named by a pid or not a socket stays."""
    presence = Presence(config)
    locks, sockets = Path(config.lock_directory, "msg.lock"), Path(config.socket_directory)
    only_lock, only_socket, no_socket = sorted(dead_pid() for _ in range(3))
    for pid in (only_lock, no_socket):
        (locks / str(pid)).write_text("1\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(sockets / str(only_socket)))
    for path in (locks / "README", locks / ".1", locks / "1.bak", sockets / "names", sockets / str(no_socket)):
        path.write_text("somebody's")
    also: list[int] = []
    with no_fd_leaks():
        assert presence.clean_up((), also.append) == [only_lock, only_socket, no_socket]
    assert also == [only_lock, only_socket, no_socket]
    assert sorted(os.listdir(locks)) == sorted((".1", "1.bak", "README", str(os.getpid())))
    assert sorted(os.listdir(sockets)) == sorted(("names", str(no_socket)))
    presence.close()


def test_what_is_no_socket_is_not_reported_each_time(config: Config) -> None:
    """A file in the place of a dead process's socket stays, and does not count as cleaned up."""
    presence = Presence(config)
    pid = dead_pid()
    path = Path(config.socket_directory, str(pid))
    path.write_text("somebody's")
    for _ in range(2):
        assert presence.clean_up((), lambda pid: None) == []
    assert path.read_text() == "somebody's"
    assert os.listdir(Path(config.lock_directory, "msg.lock")) == [str(os.getpid())]
    presence.close()
