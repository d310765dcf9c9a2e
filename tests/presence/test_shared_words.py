# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The words that a process shares in its lock file."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from msgd import Config, MessageClass
from msgd.presence import Presence
from msgd.presence.lock_file import lock_holder
from msgd.presence.lock_text import TEXT_MAX
from msgd.presence.shared_words import LOCK_FILE_SIZE, map_words, shared_words
from tests.presence.support import be_member, lock_path
from tests.support.harness import Channel, Child, no_fd_leaks


def share(config: Config, channel: Channel) -> None:
    """In a child: share words, change the last when told to, and die by the end of the test."""
    presence = Presence(config)
    words = presence.share_words(7)
    presence.announce()
    channel.send(presence.unique_id)
    words[63] = channel.recv()
    presence.announce(MessageClass.PRINT)
    channel.send("done")
    channel.recv()


@pytest.fixture
def presence(config: Config) -> Iterator[Presence]:
    presence = Presence(config)
    yield presence
    presence.close()


def test_words_are_visible_to_others(config: Config, presence: Presence) -> None:
    with no_fd_leaks(), Child(lambda channel: share(config, channel)) as child:
        unique_id = child.hear()
        mapped = map_words(presence.lock_dir_fd, child.pid)
        assert mapped is not None
        process, memory, fd = mapped
        assert (process.pid, process.unique_id) == (child.pid, unique_id)
        words = shared_words(memory)
        assert words.tolist() == [7] + [0] * 63
        child.tell(2**64 - 1)
        assert child.hear() == "done"
        assert words.tolist() == [7] + [0] * 62 + [2**64 - 1]
        announced = presence.process(child.pid)
        assert announced is not None
        assert announced.classes == MessageClass.PRINT
        words.release()
        memory.close()
        os.close(fd)


def test_format(config: Config, presence: Presence) -> None:
    """The text is padded with newlines to 512 bytes; the words follow."""
    with Child(lambda channel: share(config, channel)) as child:
        child.hear()
        content = lock_path(config, child.pid).read_bytes()
    assert len(content) == LOCK_FILE_SIZE == 1024
    text = content[:TEXT_MAX]
    assert text == text.rstrip(b"\n").ljust(TEXT_MAX, b"\n")
    assert content[TEXT_MAX:] == (7).to_bytes(8, "little").ljust(512, b"\0")


def test_dead_process_has_none(config: Config, presence: Presence) -> None:
    """What was mapped before keeps its values, and the descriptor shows that the process is dead."""
    with Child(lambda channel: share(config, channel)) as child:
        child.hear()
        mapped = map_words(presence.lock_dir_fd, child.pid)
        assert mapped is not None
        _, memory, fd = mapped
        assert lock_holder(fd) == child.pid
        child.kill()
        assert lock_holder(fd) is None
        assert shared_words(memory)[0] == 7
        assert map_words(presence.lock_dir_fd, child.pid) is None
        os.close(fd)


def test_process_that_shares_none(config: Config, presence: Presence) -> None:
    with Child(lambda channel: be_member(config, channel)) as child:
        child.hear()
        assert map_words(presence.lock_dir_fd, child.pid) is None
    assert map_words(presence.lock_dir_fd, 1) is None
