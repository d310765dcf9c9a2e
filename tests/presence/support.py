# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Helpers that several tests of msgd.presence use."""

from __future__ import annotations

import os
from pathlib import Path

from msgd import Config
from msgd.presence import Presence
from msgd.presence.open_directory import LOCK_SUBDIRECTORY
from tests.support.harness import Channel


def lock_path(config: Config, pid: int | None = None) -> Path:
    """The path of the lock file of `pid`, or of this process."""
    return Path(config.lock_directory, LOCK_SUBDIRECTORY, str(os.getpid() if pid is None else pid))


def be_member(config: Config, channel: Channel) -> None:
    """In a child: join the directory, and leave it when told to."""
    presence = Presence(config)
    presence.announce()
    channel.send(presence.unique_id)
    channel.recv()
    presence.close()
    channel.send("left")
