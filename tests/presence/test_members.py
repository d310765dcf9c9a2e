# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The members kept in memory are those that reading the directory finds, and it is read only after a change."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from msgd import Config, MessageClass
from msgd.presence import Presence
from msgd.wire.server_id import EVERY_TASK, ServerID
from tests.presence.support import be_member, lock_path
from tests.support.harness import Channel, Child


@pytest.fixture
def presence(config: Config) -> Iterator[Presence]:
    with closing(Presence(config)) as presence:
        presence.announce()
        yield presence


_opened: list[str] = []


def _note_open(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        _opened.append(arguments[0])


sys.addaudithook(_note_open)


def found(presence: Presence, kind: MessageClass = MessageClass.GENERAL) -> list[ServerID]:
    """The processes that reading the directory finds."""
    return [
        ServerID(one.pid, EVERY_TASK if one.is_ours else 0, unique_id=one.unique_id)
        for one in presence.processes()
        if one.pid != presence.pid and kind in one.classes
    ]


def known(presence: Presence, kind: MessageClass = MessageClass.GENERAL) -> list[ServerID]:
    return list(presence.members.listening(kind))


def settle(presence: Presence) -> None:
    """Read until the last change is so long ago that what was read is kept."""
    while True:
        _opened.clear()
        known(presence)
        if not _opened:
            return


def change_classes(config: Config, channel: Channel) -> None:
    """In a child: join, and listen to other classes each time it is told to."""
    with closing(Presence(config)) as presence:
        presence.announce()
        channel.send(presence.unique_id)
        while classes := channel.recv():
            presence.announce(classes)
            channel.send("changed")


def be_samba(config: Config, channel: Channel) -> None:
    """In a child: join as Samba does, in place of a dead predecessor with this pid whose lock file is still there."""
    with lock_path(config).open("r+b", buffering=0) as file, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(b"4711\n")
        bound.bind(f"{config.socket_directory}/{os.getpid()}")
        channel.send("here")
        channel.recv()


def test_come_and_go(config: Config, presence: Presence) -> None:
    """Processes join and leave in any order; at each step the two agree."""
    rng, here = random.Random(1), list[Child]()
    with ExitStack() as children:
        for _ in range(60):
            if here and rng.random() < 0.45:
                child = here.pop(rng.randrange(len(here)))
                child.tell("leave")
                assert child.hear() == "left"
            else:
                here.append(children.enter_context(Child(lambda channel: be_member(config, channel))))
                here[-1].hear()
            assert known(presence) == found(presence)
            if rng.random() < 0.3:
                settle(presence)


def test_nothing_is_read_while_nothing_changes(config: Config, presence: Presence) -> None:
    with Child(lambda channel: be_member(config, channel)) as child:
        child.hear()
        settle(presence)
        _opened.clear()
        for _ in range(100):
            assert len(known(presence)) == 1
        assert not _opened


def test_process_between_lock_and_announcement(config: Config, presence: Presence) -> None:
    """A process locks its file long before it writes its unique id, which changes no directory."""

    def body(channel: Channel) -> None:
        with closing(Presence(config)) as other:
            channel.send("locked")
            channel.recv()
            other.announce()
            channel.send("announced")
            channel.recv()

    with Child(body) as child:
        assert child.hear() == "locked"
        for _ in range(3):
            assert known(presence) == []
        child.tell("announce")
        assert child.hear() == "announced"
        assert known(presence) == found(presence) != []


def test_change_of_classes(config: Config, presence: Presence) -> None:
    """Long after the last change, and one change right after another."""
    with Child(lambda channel: change_classes(config, channel)) as child:
        child.hear()
        for classes in (MessageClass.PRINT, MessageClass.ALL, MessageClass.SMBD, MessageClass.PRINT) * 5:
            if classes is MessageClass.PRINT:
                settle(presence)
            child.tell(classes)
            assert child.hear() == "changed"
            for kind in (MessageClass.PRINT, MessageClass.SMBD):
                assert known(presence, kind) == found(presence, kind)
        child.tell(None)


def change_often(config: Config, channel: Channel) -> None:
    """In a child: change classes as fast as possible, some hundred times, and then stay."""
    with closing(Presence(config)) as presence:
        presence.announce()
        channel.send("here")
        for _ in range(100):
            for classes in (MessageClass.PRINT, MessageClass.SMBD):
                presence.announce(classes)
        channel.send("changed")
        channel.recv()


def test_changes_within_one_step_of_file_times(config: Config, presence: Presence) -> None:
    """Whatever is read in the middle of a series of changes, the last of them is seen."""
    for _ in range(20):
        with Child(lambda channel: change_often(config, channel)) as child:
            assert child.hear() == "here"
            while not child.channel.poll():
                known(presence)
            assert child.hear() == "changed"
            assert known(presence, MessageClass.SMBD) == found(presence, MessageClass.SMBD) != []


def test_killed_process_is_known_until_it_is_forgotten(config: Config, presence: Presence) -> None:
    """Nothing tells of it; whoever fails to send to it does."""
    with Child(lambda channel: be_member(config, channel)) as child:
        child.hear()
        [dead] = known(presence)
        settle(presence)
        child.kill()
        assert found(presence) == []
        assert known(presence) == [dead]
        presence.members.forget(dead._replace(unique_id=1))
        assert known(presence) == [dead]
        presence.members.forget(dead)
        assert known(presence) == []


def test_process_of_samba_in_the_place_of_a_dead_one(config: Config, presence: Presence) -> None:
    """Its lock file is neither created nor unlinked."""
    with Child(lambda channel: be_member(config, channel)) as dead:
        dead.hear()
        known(presence)
        dead.kill()
    settle(presence)
    with Child(lambda channel: be_samba(config, channel), pid=dead.pid) as samba:
        assert samba.hear() == "here"
        assert known(presence) == [ServerID(dead.pid, 0, unique_id=4711)]


def test_stale_files_are_read_once(config: Config, presence: Presence) -> None:
    for pid in range(100_000, 100_200):
        lock_path(config, pid).write_text(f"{pid}\n")
    settle(presence)
    _opened.clear()
    assert known(presence) == []
    assert not _opened
