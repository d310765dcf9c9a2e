# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol's destinations: a server id, `self`, `all`, a daemon's name, or one that processes have given themselves.

A name is a daemon's if there is a pid file of it whose process lives, as with smbcontrol; else it is looked up among
the names of the rendezvous directory, and all processes that have it are meant.
"""

from __future__ import annotations

import re

from msgd.errors import NoSuchProcess
from msgd.messaging import Messaging
from msgd.presence.pidfile import pid_file_path, read_pid
from msgd.wire.server_id import ServerID

DAEMONS = ("msgd", "smbd", "nmbd", "winbindd")
"""Those that help and complaints name; any other daemon that has a Samba pid file is found as well."""

_DAEMON_NAME = re.compile(r"[A-Za-z][\w.-]*", re.ASCII)
_OTHER_NAMES = {"winbind": "winbindd"}


def check_destination(text: str) -> str:
    """Return a well-formed destination; ValueError says what is wrong with one that is not."""
    if not _DAEMON_NAME.fullmatch(text):
        try:
            ServerID.parse(text)
        except ValueError as error:
            raise ValueError(f"{error}; or write self, all, or a daemon's name: {', '.join(DAEMONS)}") from None
    return text


def find_destinations(text: str, messaging: Messaging) -> list[ServerID]:
    """Return the processes meant, at least one; NoSuchProcess says what to do if there is none."""
    if text == "self":
        return [messaging.server_id]
    if text == "all":
        return _everybody_else(messaging)
    if not _DAEMON_NAME.fullmatch(text):
        return [ServerID.parse(text)]
    name, directory = _OTHER_NAMES.get(text, text), messaging.config.pid_directory
    pid = read_pid(directory, name)
    if pid is not None:
        return [ServerID(pid)]
    named = messaging.lookup(text)
    if not named:
        raise NoSuchProcess(
            f"{name} is not running: no process holds {pid_file_path(directory, name)}, none in"
            f" {messaging.config.lock_directory} has that name; start it, or name the smb.conf it runs with by -s"
        )
    return named


def _everybody_else(messaging: Messaging) -> list[ServerID]:
    own = messaging.server_id.pid
    others = [ServerID(pid, unique_id=unique) for pid, unique, _ in messaging.processes() if pid != own]
    if not others:
        raise NoSuchProcess(
            f"nobody else is in {messaging.config.lock_directory}; start msgd, or name another smb.conf by -s"
        )
    return others
