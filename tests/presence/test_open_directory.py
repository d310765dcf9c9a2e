"""Directories that others could write to, or that are not what they seem, are refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msgd import Config, ConfigError, TransportError, UnsafeDirectory
from msgd.presence import Presence
from msgd.presence.open_directory import LOCK_SUBDIRECTORY
from tests.support.harness import Channel, Child, no_fd_leaks

SUBDIRECTORIES = (".", LOCK_SUBDIRECTORY, "msg.sock")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away: run the tests as root")


def make(config: Config) -> None:
    """Have the directories, as a first process leaves them."""
    Presence(config).close()


def refused(config: Config, match: str) -> None:
    with no_fd_leaks(), pytest.raises((UnsafeDirectory, TransportError, ConfigError), match=match) as caught:
        Presence(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SUBDIRECTORIES)
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o772, 0o1777])
def test_writable_by_others(config: Config, name: str, mode: int) -> None:
    make(config)
    directory = Path(config.lock_directory, name)
    before = directory.stat().st_mode
    directory.chmod(mode)
    refused(config, rf"{mode:04o}.*chmod go-w")
    directory.chmod(before)
    make(config)


@as_root
@pytest.mark.parametrize("name", SUBDIRECTORIES)
def test_other_owner(config: Config, name: str) -> None:
    make(config)
    directory = Path(config.lock_directory, name)
    os.chown(directory, 65534, 65534)
    refused(config, "belongs to uid 65534")
    make(config.replace(trusted_users=frozenset({65534})))


@pytest.mark.parametrize("name", SUBDIRECTORIES[1:])
def test_link_instead_of_a_subdirectory(config: Config, scratch: Path, name: str) -> None:
    """However good the directory behind it is."""
    make(config)
    directory = Path(config.lock_directory, name)
    directory.rename(scratch / "elsewhere")
    directory.symlink_to(scratch / "elsewhere")
    refused(config, f"{directory}.*symbolic link")
    assert os.listdir(scratch / "elsewhere") == []


@pytest.mark.parametrize("name", SUBDIRECTORIES[1:])
def test_dangling_link_instead_of_a_subdirectory(config: Config, scratch: Path, name: str) -> None:
    make(config)
    directory = Path(config.lock_directory, name)
    directory.rmdir()
    directory.symlink_to(scratch / "nowhere")
    refused(config, str(directory))
    assert not (scratch / "nowhere").exists()


@pytest.mark.parametrize("name", SUBDIRECTORIES[1:])
def test_file_instead_of_a_subdirectory(config: Config, name: str) -> None:
    make(config)
    directory = Path(config.lock_directory, name)
    directory.rmdir()
    directory.touch()
    refused(config, str(directory))


def test_file_instead_of_the_lock_directory(config: Config) -> None:
    Path(config.lock_directory).touch()
    refused(config, config.lock_directory)


def test_link_to_the_lock_directory(config: Config, scratch: Path) -> None:
    """The way there is the administrator's: /var/run is a link on every Debian."""
    make(config)
    (scratch / "link").symlink_to(config.lock_directory)
    make(config.replace(lock_directory=str(scratch / "link")))


def test_missing_parents_are_made(scratch: Path) -> None:
    make(Config(lock_directory=str(scratch / "a/b/c")))


def test_socket_directory_elsewhere(config: Config, scratch: Path) -> None:
    """Upstream's Samba has it in the private directory."""
    elsewhere = config.replace(socket_directory=str(scratch / "private/msg.sock"))
    make(elsewhere)
    assert os.listdir(config.lock_directory) == [LOCK_SUBDIRECTORY]
    (scratch / "private/msg.sock").chmod(0o777)
    refused(elsewhere, "private/msg.sock.*0777")


def test_no_permission(config: Config) -> None:
    def as_nobody(channel: Channel) -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        try:
            Presence(config)
        except TransportError as error:
            channel.send(str(error))

    Path(config.lock_directory).parent.chmod(0o500)
    with Child(as_nobody) as child:
        assert "Permission denied" in child.hear()


@pytest.mark.parametrize("length", [99, 100])
def test_length_of_socket_paths(config: Config, scratch: Path, length: int) -> None:
    """107 bytes of path fit an AF_UNIX address: 99 of directory, a slash, and the 7 digits of the largest pid."""
    path = str(scratch) + "/"
    path += "x" * (length - len(path))
    long = config.replace(socket_directory=path)
    if length == 99:
        make(long)
    else:
        refused(long, r"108 bytes.*107.*shorter")
    assert Path(path).exists() == (length == 99)
