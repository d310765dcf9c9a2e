# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Helpers that several transports share: binding an AF_UNIX socket, checking an address, sizing the cache of peers."""

from __future__ import annotations

import os
import resource
import socket

from msgd.errors import NoSuchProcess
from msgd.presence import Presence, Process
from msgd.presence.socket_path import remove_socket
from msgd.wire.server_id import ANY_UNIQUE_ID, ServerID

_DESCRIPTORS_MAX = 100_000
"""The upper bound of half_of_descriptors(), for processes without a limit."""

_CACHED_MAX = 256
"""The upper bound of cached_destinations()."""


def half_of_descriptors() -> int:
    """Half of the descriptors that this process may open at present: what a transport may take of them."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _DESCRIPTORS_MAX if allowed == resource.RLIM_INFINITY else min(allowed // 2, _DESCRIPTORS_MAX)


def cached_destinations(descriptors_each: int) -> int:
    """The number of destinations that a transport keeps open, where each costs `descriptors_each` descriptors.

    Together they use at most half of the descriptors that this process may open.  A broadcast to more processes than
    that opens them again each time.
    """
    return max(1, min(half_of_descriptors() // descriptors_each, _CACHED_MAX))


def bind_socket(unbound: socket.socket, presence: Presence) -> None:
    """Bind under our pid.  Raises OSError.

    We hold the lock file of the pid, so a socket that already has the name belongs to a dead process and is removed.
    """
    name, directory_fd = str(presence.pid), presence.socket_dir_fd
    remove_socket(directory_fd, name)
    unbound.bind(f"{presence.socket_directory}/{name}")
    os.stat(name, dir_fd=directory_fd, follow_symlinks=False)  # raises if the path led to another directory
    os.chmod(name, 0o777, dir_fd=directory_fd)  # the directory's mode limits access, and credentials are checked


def check_addressed(dst: ServerID, process: Process, messaging_type: str) -> None:
    """Raise NoSuchProcess if `dst` does not address this process, or if it is reached by another messaging type."""
    check_unique_id(dst, process.unique_id)
    if process.messaging_type != messaging_type:
        raise NoSuchProcess(
            f"process {dst} uses messaging type {process.messaging_type}; here messaging type = {messaging_type}"
        )


def check_unique_id(dst: ServerID, unique_id: int) -> None:
    """Raise NoSuchProcess if `dst` does not address the present owner of its pid, whose unique id is `unique_id`."""
    if dst.unique_id != unique_id and dst.unique_id not in ANY_UNIQUE_ID:
        raise NoSuchProcess(f"no process {dst}: its pid now belongs to another one, {dst.pid}/{unique_id}")
