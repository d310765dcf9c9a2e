"""What the tests of this room share."""

from __future__ import annotations

import os
from pathlib import Path

from msgd import Config
from msgd.presence import Presence
from msgd.presence.open_directory import LOCK_SUBDIRECTORY
from tests.support.harness import Channel


def lock_path(config: Config, pid: int | None = None) -> Path:
    return Path(config.lock_directory, LOCK_SUBDIRECTORY, str(os.getpid() if pid is None else pid))


def live(config: Config, channel: Channel) -> None:
    """A process that is present until told to go."""
    presence = Presence(config)
    presence.announce()
    channel.send(presence.unique_id)
    channel.recv()
    presence.close()
    channel.send("gone")
