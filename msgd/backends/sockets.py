# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the transports on AF_UNIX sockets share: binding, who may be addressed, and how many destinations are kept."""

from __future__ import annotations

import os
import resource
import socket

from msgd.errors import NoSuchProcess
from msgd.presence import Presence
from msgd.presence.socket_path import remove_socket
from msgd.wire.server_id import ANY_PROCESS, ServerID

_CACHED_MAX = 256
"""Destinations that are kept at hand at most."""


def cached_destinations(descriptors_each: int) -> int:
    """How many processes a transport keeps at hand whom it has sent to; each costs so many file descriptors.

    A broadcast to more than these finds them anew each time.  Together they take at most half of the descriptors that
    this process may have.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return _CACHED_MAX
    return max(1, min(allowed // (2 * descriptors_each), _CACHED_MAX))


def bind_socket(unbound: socket.socket, presence: Presence) -> None:
    """Bind under our pid; a socket that is there is a dead process's, since we hold the pid's lock file."""
    name, directory_fd = str(presence.pid), presence.socket_dir_fd
    remove_socket(directory_fd, name)
    unbound.bind(f"{presence.socket_directory}/{name}")
    os.stat(name, dir_fd=directory_fd, follow_symlinks=False)  # fails if the path led elsewhere
    os.chmod(name, 0o777, dir_fd=directory_fd)  # the directory says who may reach it, the credentials who is heard


def check_unique_id(dst: ServerID, unique_id: int) -> None:
    """Raise NoSuchProcess if `dst` names another process than the one that has its pid now."""
    if dst.unique_id != unique_id and dst.unique_id not in ANY_PROCESS:
        raise NoSuchProcess(f"no process {dst}: its pid now belongs to another one, {dst.pid}/{unique_id}")
