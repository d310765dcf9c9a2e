"""The lock file: its format, its modes, its lock, and its end."""

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
from tests.presence.support import live, lock_path
from tests.support.harness import Channel, Child, dead_pid, no_fd_leaks

OWN = str(os.getpid())


def test_format(config: Config) -> None:
    """As Samba's: the unique id in decimal and a newline; 0644 in a 0755 directory, sockets in a 0700 one."""
    before = os.umask(0o077)
    try:
        child = Child(lambda channel: live(config, channel))
    finally:
        os.umask(before)
    with child:
        unique_id = child.hear()
        path = lock_path(config, child.pid)
        first, *lines = path.read_text().split("\n")
        assert first == str(unique_id)
        assert [line.partition(" ")[0] for line in lines] == ["type", "classes", "since", "command", ""]
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
        assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o755
        assert stat.S_IMODE(Path(config.socket_directory).stat().st_mode) == 0o700


def test_longer_file_of_a_dead_process_is_replaced(config: Config) -> None:
    Presence(config).close()
    lock_path(config).write_text("12345678901234567890\nmore\nlines\n")
    presence = Presence(config)
    presence.announce()
    text = lock_path(config).read_text()  # drops the lock, which is not needed here
    assert text.startswith(f"{presence.unique_id}\ntype ")
    assert "more" not in text
    presence.close()


def hold(path: Path, text: bytes, channel: Channel) -> None:
    """Lock a lock file of one's own making, as another program does."""
    file = path.open("wb", buffering=0)
    fcntl.lockf(file, fcntl.LOCK_EX)
    file.write(text)
    channel.send("locked")
    channel.recv()


def locked(config: Config, text: bytes) -> Child:
    """A process that holds the lock of its lock file with this text."""
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
def test_texts(config: Config, text: bytes, unique_id: int, lines: tuple[str, ...]) -> None:
    presence = Presence(config)
    with locked(config, text) as child:
        assert presence.process(child.pid) == Process(child.pid, unique_id, lines)
    presence.close()


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"12", b"x\n", b"-1\n", b" 1\n", b"1 \n", b"123456789012345678901\n", b"\xff" * 5000]
)
def test_texts_that_say_nothing(config: Config, text: bytes) -> None:
    """A process whose file is not what it must be cannot be addressed, and is not cleaned up either: it lives."""
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
def test_lock_file_that_is_none(config: Config, kind: str) -> None:
    """Nobody is found behind it, a cleaner does not follow it, and the process with that pid refuses to start."""
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


def test_lock_file_that_is_none_stops_no_cleaner(config: Config) -> None:
    """What is behind it is still cleaned up."""
    presence = Presence(config)
    first, second = sorted((dead_pid(), dead_pid()))
    lock_path(config, first).mkdir()
    lock_path(config, second).write_text("1\n")
    assert presence.clean_up((), lambda pid: None) == [second]
    presence.close()


def test_locked_by_another_process_for_good(config: Config) -> None:
    """One clear line instead of two processes under one pid."""
    Presence(config).close()
    with Child(lambda channel: hold(lock_path(config, os.getppid()), b"1\n", channel)) as child:
        assert child.hear() == "locked"
        with no_fd_leaks(), pytest.raises(TransportError, match=rf"locked by pid {child.pid}"):
            Presence(config)


def test_no_room_for_it(config: Config) -> None:
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
