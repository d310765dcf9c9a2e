# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Where a PubSub meets the others if nobody has named a directory: private to the user, or refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from msgd import Config, UnsafeDirectory
from msgd.pubsub import PubSub
from msgd.pubsub.place import place, private_directory
from tests.support.harness import Channel, Child

STRANGER = 54321
"""A uid that nobody has."""


def test_a_directory_that_is_named_counts(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSGD_DIRECTORY", str(scratch / "of-environment"))
    assert place(None, "name").lock_directory == str(scratch / "of-environment")
    assert place(scratch / "of-argument", "name").lock_directory == str(scratch / "of-argument")
    config = Config(lock_directory=str(scratch), messaging_type="stream")
    assert place(config, None) is config


def test_the_directory_of_the_session(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSGD_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(scratch))
    assert private_directory("shop") == str(scratch / "msgd" / "shop")
    with PubSub(name="shop") as pubsub:
        pubsub.publish("a")
    assert (scratch / "msgd" / "shop" / "publishers").stat().st_mode & 0o777 == 0o600
    scratch.chmod(0o777)
    assert not private_directory("shop").startswith(str(scratch))


@pytest.mark.parametrize("name", ["", "../etc", "a/b", "x" * 33, "ä"])
def test_a_name_is_a_plain_one(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a directory"):
        private_directory(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_a_session_has_a_private_directory_in_tmp(scratch: Path) -> None:
    path = Path(f"/tmp/msgd-{STRANGER}")
    shutil.rmtree(path, ignore_errors=True)

    def become_and_open(channel: Channel) -> None:
        os.setgroups([])
        os.setgid(STRANGER)
        os.setuid(STRANGER)
        os.environ.pop("MSGD_DIRECTORY", None)
        os.environ["XDG_RUNTIME_DIR"] = str(scratch)  # root's, as after a change of the user
        try:
            with PubSub(name="shop") as pubsub:
                channel.send((pubsub.publish("a").delivered, pubsub._open().config.lock_directory))
        except UnsafeDirectory as error:
            channel.send(str(error))

    try:
        with Child(become_and_open) as child:
            assert child.hear() == (0, f"{path}/shop")
        assert path.stat().st_mode & 0o777 == 0o700
        shutil.rmtree(path)
        path.symlink_to(scratch)
        with Child(become_and_open) as child:
            assert "symbolic link" in child.hear()
        path.unlink()
        path.mkdir(0o755)
        os.chown(path, STRANGER + 1, 0)
        with Child(become_and_open) as child:
            assert f"belongs to uid {STRANGER + 1}" in child.hear()
    finally:
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
