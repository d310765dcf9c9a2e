# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The lock file: format, modes, lock, and what is refused in its place."""

from __future__ import annotations

import fcntl
import os
import resource
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from msgd import Config, TransportError, UnsafeDirectory
from msgd.presence import Presence, Process
from tests.presence.support import be_member, lock_path
from tests.support.harness import Channel, Child, dead_pid, no_fd_leaks

OWN = str(os.getpid())


def test_format_and_modes(config: Config) -> None:
    """Samba's format: a decimal unique id and a newline; 0644 in a 0755 directory, sockets in a 0700 directory."""
    before = os.umask(0o077)
    try:
        child = Child(lambda channel: be_member(config, channel))
    finally:
        os.umask(before)
    with child:
        unique_id = child.hear()
        path = lock_path(config, child.pid)
        first, *lines = path.read_text().split("\n")
        assert first == str(unique_id)
        assert [line.partition(" ")[0] for line in lines] == ["type", "classes", "since", "tasks", "command", ""]
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
        assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o755
        assert stat.S_IMODE(Path(config.socket_directory).stat().st_mode) == 0o700


def test_file_of_a_dead_predecessor_is_replaced(config: Config) -> None:
    Presence(config).close()
    lock_path(config).write_text("12345678901234567890\nmore\nlines\n")
    presence = Presence(config)
    presence.announce()
    text = lock_path(config).read_text()  # this drops the lock, which the test does not need
    assert text.startswith(f"{presence.unique_id}\ntype ")
    assert "more" not in text
    presence.close()


def hold(path: Path, text: bytes, channel: Channel) -> None:
    """In a child: create a lock file with any text and lock it, as another program may do."""
    file = path.open("wb", buffering=0)
    fcntl.lockf(file, fcntl.LOCK_EX)
    file.write(text)
    channel.send("locked")
    channel.recv()


def locked(config: Config, text: bytes) -> Child:
    """A process that holds the lock on its own lock file, which has this text."""
    child = Child(lambda channel: hold(lock_path(config), text, channel))
    assert child.hear() == "locked"
    return child


@pytest.mark.parametrize(
    ("text", "unique_id", "lines"),
    [
        (b"1\n", 1, ()),
        (b"18446744073709551614\n", 18446744073709551614, ()),
        (b"77\nfirst\nsecond\n", 77, ("first", "second")),
        (b"77\n\xff\n", 77, ("\N{REPLACEMENT CHARACTER}",)),
        (b"77\n" + b"\n" * 500, 77, ()),
    ],
)
def test_text_is_parsed(config: Config, text: bytes, unique_id: int, lines: tuple[str, ...]) -> None:
    presence = Presence(config)
    with locked(config, text) as child:
        assert presence.process(child.pid) == Process(child.pid, unique_id, lines)
    presence.close()


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"12", b"x\n", b"-1\n", b" 1\n", b"1 \n", b"123456789012345678901\n", b"\xff" * 5000]
)
def test_text_that_cannot_be_parsed(config: Config, text: bytes) -> None:
    """A process with such a file cannot be addressed.  It is not cleaned up either, because it is alive."""
    presence = Presence(config)
    with locked(config, text) as child:
        assert presence.process(child.pid) is None
        assert [process.pid for process in presence.processes()] == [os.getpid()]
        assert presence.clean_up((), lambda pid: None) == []
        assert lock_path(config, child.pid).exists()
    presence.close()


REPLACEMENTS: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to("../target"),
    "directory": Path.mkdir,
    "fifo": os.mkfifo,
}


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_something_else_in_place_of_a_lock_file(config: Config, kind: str) -> None:
    """No process is found there, no cleaner follows it, and the process with that pid refuses to start."""
    Presence(config).close()
    pid, path = dead_pid(), lock_path(config)
    target = Path(config.lock_directory, "target")
    target.write_text("not to be touched")
    for one in (path, lock_path(config, pid)):
        REPLACEMENTS[kind](one)
    with no_fd_leaks(), pytest.raises((UnsafeDirectory, TransportError), match=OWN):
        Presence(config)
    if kind == "directory":
        path.rmdir()
    else:
        path.unlink()
    presence = Presence(config)
    assert presence.process(pid) is None
    presence.clean_up((), lambda pid: None)
    assert target.read_text() == "not to be touched"
    presence.close()


def test_directory_in_place_of_a_lock_file_does_not_stop_a_cleaner(config: Config) -> None:
    """The files after it are still cleaned up."""
    presence = Presence(config)
    first, second = sorted((dead_pid(), dead_pid()))
    lock_path(config, first).mkdir()
    lock_path(config, second).write_text("1\n")
    assert presence.clean_up((), lambda pid: None) == [second]
    presence.close()


def test_file_that_stays_locked_by_another_process(config: Config) -> None:
    """The constructor fails with a clear message, and there are never two processes under one pid."""
    Presence(config).close()
    with Child(lambda channel: hold(lock_path(config, os.getppid()), b"1\n", channel)) as child:
        assert child.hear() == "locked"
        with no_fd_leaks(), pytest.raises(TransportError, match=rf"locked by pid {child.pid}"):
            Presence(config)


def test_write_that_fails(config: Config) -> None:
    def announce(channel: Channel) -> None:
        with closing(Presence(config)) as presence:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
            try:
                presence.announce()
            except TransportError as error:
                channel.send(str(error))

    with Child(announce) as child:
        assert child.hear() == f"{lock_path(config, child.pid)}: File too large"
        assert child.wait() == 0
    assert not lock_path(config, child.pid).exists()
