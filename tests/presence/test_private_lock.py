# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The private lock: only its owner can open the file, its parts are independent, and each wait has a limit."""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgd import Config, Messaging, TransportError, UnsafeDirectory
from msgd.presence import private_lock
from msgd.presence.private_lock import NAMES_FILE, PRIVATE_FILE, PrivateLock
from tests.support.harness import Channel, Child, no_fd_leaks
from tests.support.strangers import NOBODY, needs_root


@pytest.fixture
def directory(scratch: Path) -> str:
    return str(scratch)


@pytest.fixture
def lock(directory: str) -> Iterator[PrivateLock]:
    fd = os.open(directory, os.O_RDONLY)
    yield PrivateLock(fd, directory)
    os.close(fd)


def lock_of(directory: str) -> PrivateLock:
    """The lock, in a child."""
    return PrivateLock(os.open(directory, os.O_RDONLY), directory)


def holding(directory: str, part: int) -> Child:
    """A process that holds the lock."""

    def hold(channel: Channel) -> None:
        with lock_of(directory).held(part):
            channel.send("held")
            channel.recv()
        channel.send("released")

    child = Child(hold)
    assert child.hear() == "held"
    return child


def test_nobody_else_can_open_the_file(directory: str, lock: PrivateLock) -> None:
    before = os.umask(0)
    try:
        with lock.held(1):
            assert stat.S_IMODE(os.stat(f"{directory}/{PRIVATE_FILE}").st_mode) == 0o600
    finally:
        os.umask(before)


@needs_root
def test_the_file_belongs_to_the_owner_of_the_directory(directory: str, lock: PrivateLock) -> None:
    """Root may be the first to need it."""
    os.chown(directory, NOBODY, NOBODY)
    with lock.held(1):
        pass

    def as_owner(channel: Channel) -> None:
        os.setuid(NOBODY)
        with lock_of(directory).held(1):
            channel.send("held")

    with Child(as_owner) as child:
        assert child.hear() == "held"


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_file_that_others_can_open_is_refused(directory: str, mode: int, lock: PrivateLock) -> None:
    path = Path(directory, PRIVATE_FILE)
    path.touch()
    path.chmod(mode)
    with no_fd_leaks(), pytest.raises(UnsafeDirectory, match=re.escape(str(path))), lock.held(1):
        pass


def test_parts_do_not_hold_up_each_other(directory: str, lock: PrivateLock) -> None:
    with holding(directory, 4711):
        with lock.held(4712), lock.held(NAMES_FILE), lock.held_if_free(4711) as is_free:
            assert not is_free
        with lock.held_if_free(4712) as is_free:
            assert is_free


def test_the_dead_hold_nothing(directory: str, lock: PrivateLock) -> None:
    holding(directory, 1).kill()
    with lock.held_if_free(1) as is_free:
        assert is_free


def test_a_wait_ends_with_the_name_of_the_holder(
    directory: str, monkeypatch: pytest.MonkeyPatch, lock: PrivateLock
) -> None:
    """The holder has been stopped."""
    monkeypatch.setattr(private_lock, "LOCK_TIMEOUT", 0.2)
    with holding(directory, 1) as child:
        child.stop()
        with (
            no_fd_leaks(),
            pytest.raises(
                TransportError, match=rf"{PRIVATE_FILE} has been locked .* by pid {child.pid}; is it stopped"
            ),
            lock.held(1),
        ):
            pass
        child.resume()


def test_a_wait_ends_when_the_holder_is_done(directory: str, lock: PrivateLock) -> None:
    with holding(directory, 1) as child:
        child.tell("go on")
        with lock.held(1):
            assert child.hear() == "released"


def test_threads_exclude_each_other_and_so_does_a_handler_of_a_signal(directory: str, lock: PrivateLock) -> None:
    """Each opening counts for itself, unlike with locks that belong to the process."""
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(200):
            with lock.held(1):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    with lock.held(1), lock.held_if_free(1) as is_free:
        assert not is_free


def test_a_file_that_was_removed_is_not_waited_for(directory: str, lock: PrivateLock) -> None:
    """Whoever gets the lock of a file without a name opens the next one."""
    path = Path(directory, PRIVATE_FILE)
    with holding(directory, 1) as child:
        path.unlink()
        with lock.held(1):
            assert path.exists()
        child.tell("go on")


def test_a_stopped_starter_holds_up_nobody(config: Config) -> None:
    """It has been stopped while it takes its lock file: others come, talk and clean up."""
    with Messaging(config) as messaging, holding(config.lock_directory, 1) as starter:
        starter.stop()
        assert messaging.clean_up() == []
        with Child(lambda channel: channel.send(Messaging(config).is_alive(messaging.server_id))) as another:
            assert another.hear() is True
        starter.resume()
