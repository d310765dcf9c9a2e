# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Resolve msgcontrol's destinations: `all`, `self`, a server id, a daemon's name, or a registered name.

They are tried in this order, which is smbcontrol's.  A name is a daemon's if the daemon has a pid file and its process
is alive.  Otherwise the name is looked up in the rendezvous directory, and it stands for every process that has
registered it.  Upper and lower case are the same, but for two names that differ in nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from msgd.config import Config
from msgd.errors import MsgdError, NoSuchProcess
from msgd.messaging import Messaging
from msgd.presence.open_directory import LOCK_SUBDIRECTORY
from msgd.presence.pidfile import pid_file_path, read_pid
from msgd.wire.server_id import NONCLUSTER_VNN, ServerID

logger = logging.getLogger("msgd.msgcontrol")

DAEMONS = ("msgd", "smbd", "nmbd", "winbindd")
"""The daemons named in help and error messages.  Any other daemon with a Samba pid file is found as well."""

ALL, SELF = "all", "self"

_DAEMON_NAME = re.compile(r"[A-Za-z][\w.-]*", re.ASCII)
_OTHER_NAMES = {"winbind": "winbindd"}


class WhoIsThere(Protocol):
    """What destinations are looked up in: the directory, or what the gateway says of it."""

    @property
    def own_id(self) -> ServerID:
        """The address of this process."""

    def others(self) -> Sequence[ServerID]:
        """The living processes, without this one."""

    def names(self) -> Mapping[str, Sequence[ServerID]]:
        """The names of living processes."""

    def has_samba(self, pid: int) -> bool:
        """Whether the process may be one of Samba's."""

    def has_other_nodes(self) -> bool:
        """Whether other nodes of a cluster are connected, whose processes nobody can list."""


class Members:
    """The directory, looked at by this process, which is a member of it."""

    def __init__(self, messaging: Messaging) -> None:
        self._messaging = messaging
        self.own_id = messaging.server_id
        self._are_ours: dict[int, bool] = {}

    def others(self) -> list[ServerID]:
        found = [process for process in self._messaging.processes() if process.pid != self.own_id.pid]
        self._are_ours = {process.pid: process.is_ours for process in found}
        return [ServerID(process.pid, unique_id=process.unique_id) for process in found]

    def names(self) -> dict[str, list[ServerID]]:
        return self._messaging.names()

    def has_samba(self, pid: int) -> bool:
        if pid not in self._are_ours:
            self.others()
        return not self._are_ours.get(pid, True)

    def has_other_nodes(self) -> bool:
        return any(node.number != self.own_id.vnn and node.is_connected for node in self._messaging.nodes())


def check_destination(text: str) -> str:
    """Return the destination if it is well-formed; otherwise raise ValueError with the reason."""
    if not _DAEMON_NAME.fullmatch(text):
        try:
            ServerID.parse(text)
        except ValueError as error:
            raise ValueError(f"{error}; or write self, all, or a daemon's name: {', '.join(DAEMONS)}") from None
    return text.lower() if text.lower() in (ALL, SELF) else text


def check_directory(text: str, config: Config) -> None:
    """Raise NoSuchProcess if there is no lock directory: nobody is there, and opening a context would make it."""
    if text == SELF or os.path.isdir(config.lock_directory):
        return
    if text == ALL:
        raise _nobody_else(config)
    if _DAEMON_NAME.fullmatch(text):
        raise _not_running(_OTHER_NAMES.get(text.lower(), text), config)
    raise NoSuchProcess(f"no process {text}: {config.lock_directory} does not exist; give the smb.conf it uses with -s")


def pids_with_files(config: Config) -> frozenset[int]:
    """The pids that have a lock file or a socket in the directory, dead or alive; none if it cannot be read."""
    found: set[int] = set()
    for directory in (os.path.join(config.lock_directory, LOCK_SUBDIRECTORY), config.socket_directory):
        with contextlib.suppress(OSError):
            found |= {int(name) for name in os.listdir(directory) if name.isdecimal()}
    return frozenset(found)


def find_destinations(text: str, there: WhoIsThere, config: Config) -> list[ServerID]:
    """Return the processes that the destination stands for; for `all`, those of this node.

    Raises NoSuchProcess if there are none, on other nodes neither.
    """
    if text == SELF:
        return [there.own_id]
    if text == ALL:
        others = there.others()
        if not others and not there.has_other_nodes():
            raise _nobody_else(config)
        return _with_tasks(others, there)
    if not _DAEMON_NAME.fullmatch(text):
        return _with_tasks([ServerID.parse(text)], there)
    name = _OTHER_NAMES.get(text.lower(), text)
    pid = read_pid(config.pid_directory, name)
    if pid is None and name != name.lower():
        pid = read_pid(config.pid_directory, name.lower())
    if pid is not None:
        return [ServerID(pid)]
    named = _named(text, there.names())
    if not named:
        raise _not_running(name, config)
    return named


def _named(text: str, names: Mapping[str, Sequence[ServerID]]) -> list[ServerID]:
    """The processes that have the name, letter by letter if any has; else in any case."""
    exact = names.get(text)
    if exact:
        return list(exact)
    folded = text.casefold()
    return list(dict.fromkeys(one for name, ids in names.items() if name.casefold() == folded for one in ids))


def _with_tasks(processes: Iterable[ServerID], there: WhoIsThere) -> list[ServerID]:
    """The processes, each at a task that it has.

    A process of msgd's has task 0 or refuses; one of Samba's that is written in Python may have other tasks alone, and
    is deaf at task 0.  Its tasks are those that it has registered names for.
    """
    found: list[ServerID] = []
    names: Mapping[str, Sequence[ServerID]] | None = None
    for process in processes:
        is_elsewhere = process.vnn not in (NONCLUSTER_VNN, there.own_id.vnn)
        if process.task_id or is_elsewhere or not there.has_samba(process.pid):
            found.append(process)
            continue
        names = _names(there) if names is None else names
        tasks = sorted({one.task_id for ids in names.values() for one in ids if one.pid == process.pid})
        found += [process] if 0 in tasks or not tasks else [process._replace(task_id=task) for task in tasks]
    return found


def _names(there: WhoIsThere) -> Mapping[str, Sequence[ServerID]]:
    """The names; without them (a damaged file) everybody is asked at task 0."""
    try:
        return there.names()
    except MsgdError as error:
        logger.warning("%s; each process is asked at its task 0", error)
        return {}


def _not_running(name: str, config: Config) -> NoSuchProcess:
    return NoSuchProcess(
        f"{name} is not running: no process holds {pid_file_path(config.pid_directory, name)}, none in"
        f" {config.lock_directory} has that name; start it, or give the smb.conf it uses with -s"
    )


def _nobody_else(config: Config) -> NoSuchProcess:
    return NoSuchProcess(
        f"no other process is in {config.lock_directory}; start msgd, or give another smb.conf with -s"
    )
