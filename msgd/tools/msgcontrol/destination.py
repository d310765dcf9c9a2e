# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Resolve msgcontrol's destinations: a server id, `self`, `all`, a daemon's name, or a registered name.

A name is a daemon's if the daemon has a pid file and its process is alive, as with smbcontrol.  Otherwise the name is
looked up in the rendezvous directory, and it stands for every process that has registered it.
"""

from __future__ import annotations

import os
import re

from msgd.config import Config
from msgd.errors import NoSuchProcess
from msgd.messaging import Messaging
from msgd.presence.pidfile import pid_file_path, read_pid
from msgd.wire.server_id import NONCLUSTER_VNN, ServerID

DAEMONS = ("msgd", "smbd", "nmbd", "winbindd")
"""The daemons named in help and error messages.  Any other daemon with a Samba pid file is found as well."""

_DAEMON_NAME = re.compile(r"[A-Za-z][\w.-]*", re.ASCII)
_OTHER_NAMES = {"winbind": "winbindd"}


def check_destination(text: str) -> str:
    """Return the destination if it is well-formed; otherwise raise ValueError with the reason."""
    if not _DAEMON_NAME.fullmatch(text):
        try:
            ServerID.parse(text)
        except ValueError as error:
            raise ValueError(f"{error}; or write self, all, or a daemon's name: {', '.join(DAEMONS)}") from None
    return text


def check_directory(text: str, config: Config) -> None:
    """Raise NoSuchProcess if there is no lock directory: nobody is there, and opening a context would make it."""
    if text == "self" or os.path.isdir(config.lock_directory):
        return
    if text == "all":
        raise _nobody_else(config)
    if _DAEMON_NAME.fullmatch(text):
        raise _not_running(_OTHER_NAMES.get(text, text), config)
    raise NoSuchProcess(f"no process {text}: {config.lock_directory} does not exist; give the smb.conf it uses with -s")


def find_destinations(text: str, messaging: Messaging) -> list[ServerID]:
    """Return the processes that the destination stands for, as far as they are known: for `all`, those of this node.

    In a cluster they have the number of their node.  Raises NoSuchProcess if there are none, on other nodes neither.
    """
    if text == "self":
        return [messaging.server_id]
    if text == "all":
        return _all_others(messaging)
    if not _DAEMON_NAME.fullmatch(text):
        parsed = ServerID.parse(text)
        return [parsed if parsed.vnn != NONCLUSTER_VNN else parsed._replace(vnn=messaging.server_id.vnn)]
    name, directory = _OTHER_NAMES.get(text, text), messaging.config.pid_directory
    pid = read_pid(directory, name)
    if pid is not None:
        return [ServerID(pid, vnn=messaging.server_id.vnn)]
    named = messaging.lookup(text)
    if not named:
        raise _not_running(name, messaging.config)
    return named


def _all_others(messaging: Messaging) -> list[ServerID]:
    own, _, vnn, _ = messaging.server_id
    others = [ServerID(pid, vnn=vnn, unique_id=unique) for pid, unique, _ in messaging.processes() if pid != own]
    if not others and not any(node.number != vnn and node.is_connected for node in messaging.nodes()):
        raise _nobody_else(messaging.config)
    return others


def _not_running(name: str, config: Config) -> NoSuchProcess:
    return NoSuchProcess(
        f"{name} is not running: no process holds {pid_file_path(config.pid_directory, name)}, none in"
        f" {config.lock_directory} has that name; start it, or give the smb.conf it uses with -s"
    )


def _nobody_else(config: Config) -> NoSuchProcess:
    return NoSuchProcess(
        f"no other process is in {config.lock_directory}; start msgd, or give another smb.conf with -s"
    )
