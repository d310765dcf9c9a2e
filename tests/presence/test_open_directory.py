# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Directories that others can write to, or that are something else, are refused with an error of one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msgd import Config, ConfigError, TransportError, UnsafeDirectory
from msgd.presence import Presence
from msgd.presence.open_directory import LOCK_SUBDIRECTORY
from msgd.presence.private_lock import PRIVATE_FILE
from tests.support.harness import Channel, Child, no_fd_leaks

SUBDIRECTORIES = (".", LOCK_SUBDIRECTORY, "msg.sock")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change owners: run the tests as root")


def create(config: Config) -> None:
    """Create the directories as the first member of a directory does."""
    Presence(config).close()


def refused(config: Config, match: str) -> None:
    """Check that joining fails with one line that matches, and leaks no descriptor."""
    with no_fd_leaks(), pytest.raises((UnsafeDirectory, TransportError, ConfigError), match=match) as caught:
        Presence(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SUBDIRECTORIES)
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o772, 0o1777])
def test_writable_by_others(config: Config, name: str, mode: int) -> None:
    create(config)
    directory = Path(config.lock_directory, name)
    before = directory.stat().st_mode
    directory.chmod(mode)
    refused(config, rf"{mode:04o}.*chmod go-w")
    directory.chmod(before)
    create(config)


@as_root
@pytest.mark.parametrize("name", SUBDIRECTORIES)
def test_other_owner(config: Config, name: str) -> None:
    create(config)
    directory = Path(config.lock_directory, name)
    os.chown(directory, 65534, 65534)
    refused(config, "belongs to uid 65534")
    create(config.replace(trusted_users=frozenset({65534})))


@pytest.mark.parametrize("name", SUBDIRECTORIES[1:])
def test_link_in_place_of_a_subdirectory(config: Config, scratch: Path, name: str) -> None:
    """It is refused even if it leads to a good directory."""
    create(config)
    directory = Path(config.lock_directory, name)
    directory.rename(scratch / "elsewhere")
    directory.symlink_to(scratch / "elsewhere")
    refused(config, f"{directory}.*symbolic link")
    assert os.listdir(scratch / "elsewhere") == []


@pytest.mark.parametrize("name", SUBDIRECTORIES[1:])
def test_dangling_link_in_place_of_a_subdirectory(config: Config, scratch: Path, name: str) -> None:
    create(config)
    directory = Path(config.lock_directory, name)
    directory.rmdir()
    directory.symlink_to(scratch / "nowhere")
    refused(config, str(directory))
    assert not (scratch / "nowhere").exists()


@pytest.mark.parametrize("name", SUBDIRECTORIES[1:])
def test_file_in_place_of_a_subdirectory(config: Config, name: str) -> None:
    create(config)
    directory = Path(config.lock_directory, name)
    directory.rmdir()
    directory.touch()
    refused(config, str(directory))


def test_file_in_place_of_the_lock_directory(config: Config) -> None:
    Path(config.lock_directory).touch()
    refused(config, config.lock_directory)


def test_link_to_the_lock_directory(config: Config, scratch: Path) -> None:
    """The administrator chose the path, so links in it are followed: /var/run is a link on every Debian system."""
    create(config)
    (scratch / "link").symlink_to(config.lock_directory)
    create(config.replace(lock_directory=str(scratch / "link")))


def test_missing_parents_are_created(scratch: Path) -> None:
    create(Config(lock_directory=str(scratch / "a/b/c")))


def test_socket_directory_elsewhere(config: Config, scratch: Path) -> None:
    """Upstream Samba has it in the private directory."""
    elsewhere = config.replace(socket_directory=str(scratch / "private/msg.sock"))
    create(elsewhere)
    assert sorted(os.listdir(config.lock_directory)) == [LOCK_SUBDIRECTORY, PRIVATE_FILE]
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
    """An AF_UNIX address has room for 107 bytes: 99 for the directory, a slash, and 7 digits for the largest pid."""
    path = str(scratch) + "/"
    path += "x" * (length - len(path))
    long = config.replace(socket_directory=path)
    if length == 99:
        create(long)
    else:
        refused(long, r"108 bytes.*107.*shorter")
    assert Path(path).exists() == (length == 99)
