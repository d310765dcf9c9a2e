# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Read the processes of a rendezvous directory from outside, as the rows of msgstatus's table."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from msgd.config import Config
from msgd.errors import BackendUnavailable, TransportError, UnsafeDirectory
from msgd.messaging import backend_class
from msgd.messaging.loading import check_cluster
from msgd.presence import RendezvousDirectory
from msgd.presence.lock_file import Entry
from msgd.presence.samba3 import Samba3Processes
from msgd.tools.msgstatus.hung import HungProcesses, proc_text, wait_channel
from msgd.wire.message_types import class_names
from msgd.wire.server_id import NONCLUSTER_VNN, ServerID

if TYPE_CHECKING:
    from msgd.wire.ctdb import Node

T = TypeVar("T")


class Row(NamedTuple):
    """One process.  None means unknown: not recorded, not readable, or not visible from outside."""

    pid: int
    unique_id: int | None
    uid: int
    command: str | None
    """The program's name; for Samba's processes, the title they give themselves."""
    names: tuple[str, ...] | None
    classes: tuple[str, ...]
    """The broadcast classes it listens to."""
    type: str | None
    """The messaging type."""
    queue: int | None
    """Its backlog in messages.  Known only with messaging type tdb: the kernel does not report it for sockets."""
    since: int
    """When it joined, in seconds since the epoch."""
    state: str
    """`alive`, `dead`, `starting`: it holds its lock file but has not written its identity yet, or `elsewhere`: it
    lives in another pid namespace, where it has this pid."""
    kind: str = "msgd"
    """`msgd`, `samba`, or `samba3`: Samba 3.0."""
    hung: float | None = None
    """For how many seconds a message is known to wait that the process does not take; None if it takes them."""
    waits_in: str | None = None
    """Where a process that is hung waits: the kernel's wait channel, or what /proc says of its state."""
    node: int | None = None
    """The number of its node; None without a cluster, or if ctdbd does not say it."""

    @property
    def server_id(self) -> str | None:
        """The address for msgcontrol that no later process with the same pid matches; None without a unique id."""
        if self.unique_id is None:
            return None
        vnn = NONCLUSTER_VNN if self.node is None else self.node
        return str(ServerID(self.pid, vnn=vnn, unique_id=self.unique_id))


class Status(NamedTuple):
    """The rows in order of pid, and a note for each thing that could not be read.

    `nodes`: those of the cluster, as this node's ctdbd sees them; None without a cluster.  `own_node`: this one.
    """

    directory: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    nodes: tuple[Node, ...] | None = None
    own_node: int | None = None


def read_status(config: Config, hung: HungProcesses | None = None) -> Status:
    """Read the directory without changing it.  `hung` tells who is hung.  Raises TransportError, UnsafeDirectory."""
    notes: list[str] = []
    with RendezvousDirectory(config) as directory:
        entries = list(directory.entries())
        names = _unless_denied(lambda: _names_by_pid(directory), notes)
        depths = _unless_denied(lambda: backend_class(config.messaging_type).depths(config, directory), notes)
        samba3 = _samba3_rows(config, directory, depths or {})
        found = _unless_denied(lambda: hung.look(directory), notes) if hung is not None else None
    rows = [*(_row(entry, names, depths or {}) for entry in entries), *samba3]
    if found:
        rows = [_with_hung(row, found.get(row.pid)) for row in rows]
    rows.sort(key=lambda row: row.pid)
    if not config.clustering:
        return Status(config.lock_directory, tuple(rows), tuple(notes))
    own, nodes = _unless_denied(lambda: _ask_ctdbd(config), notes) or (None, ())
    return Status(config.lock_directory, tuple(row._replace(node=own) for row in rows), tuple(notes), nodes, own)


def _ask_ctdbd(config: Config) -> tuple[int, tuple[Node, ...]]:
    """The number of this node, and all nodes."""
    check_cluster()
    from msgd.cluster import asking  # only in a cluster

    return asking.own_number(config), asking.nodes(config)


def _samba3_rows(config: Config, directory: RendezvousDirectory, depths: Mapping[int, int]) -> list[Row]:
    """The processes of Samba 3.0, which have no lock files."""
    if not config.samba3 or config.messaging_type != "tdb":
        return []
    rows = []
    for process in Samba3Processes(directory.directory_fd, directory.lock_dir_fd, directory.pid).all():
        with contextlib.suppress(OSError):  # it has just ended
            status = os.stat(f"/proc/{process.pid}")
            since = int(status.st_mtime)
            name = _kernels_name(process.pid)
            queue = depths.get(process.pid, 0)
            rows.append(
                Row(process.pid, None, status.st_uid, name, (), (), "tdb", queue, since, "alive", kind="samba3")
            )
    return rows


def _with_hung(row: Row, seconds: float | None) -> Row:
    if seconds is None or row.state != "alive":
        return row
    return row._replace(hung=round(seconds, 1), waits_in=wait_channel(row.pid))


def _unless_denied(read: Callable[[], T], notes: list[str]) -> T | None:
    """The result of `read`; None, with the reason in `notes`, if access is denied or the file is damaged."""
    try:
        return read()
    except (BackendUnavailable, TransportError, UnsafeDirectory) as error:
        notes.append(str(error))
        return None


def _names_by_pid(directory: RendezvousDirectory) -> Mapping[int, tuple[str, ...]]:
    by_pid: defaultdict[int, set[str]] = defaultdict(set)
    for name, processes in directory.names().items():
        for server_id in processes:
            by_pid[server_id.pid].add(name)
    return {pid: tuple(sorted(names)) for pid, names in by_pid.items()}


def _row(entry: Entry, names: Mapping[int, tuple[str, ...]] | None, depths: Mapping[int, int]) -> Row:
    pid, process = entry.pid, entry.process
    return Row(
        pid=pid,
        unique_id=None if process is None else process.unique_id,
        uid=entry.uid,
        command=(process and process.command) or _kernels_name(pid if entry.is_alive else entry.elsewhere),
        names=None if names is None else names.get(pid, ()),
        classes=() if process is None else tuple(class_names(process.classes).split()),
        type=None if process is None else process.messaging_type,
        queue=depths.get(pid),
        since=(process and process.since) or int(entry.modified),
        state=_state(entry),
        kind="msgd" if process is None or process.is_ours else "samba",
    )


def _state(entry: Entry) -> str:
    if not entry.is_alive:
        return "dead" if entry.elsewhere is None else "elsewhere"
    return "starting" if entry.process is None else "alive"


def _kernels_name(pid: int | None) -> str | None:
    """The name of a living process in /proc; None if it has ended meanwhile, or if there is none that we can see."""
    if not pid:
        return None
    try:
        return proc_text(pid, "comm").rstrip("\n")
    except OSError:
        return None
