# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The process at the other end of a connection, as the kernel describes it, and whether it may connect."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import NamedTuple

from msgd.config import Config
from msgd.linux import Credentials

_SO_PEERGROUPS = 59
"""Linux 4.13; Python's socket module has no name for it."""
_GROUPS_SIZE = 1024
"""The longest answer that Python can ask for: 256 groups.  A process with more is judged by its uid and gid alone."""


class Peer(NamedTuple):
    """The process that connected, as it was at that time."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, client: socket.socket) -> Peer:
        """The process at the other end of an AF_UNIX connection."""
        return cls(*Credentials.of_peer(client), _groups_of(client))

    def __str__(self) -> str:
        return f"pid {self.pid} of uid {self.uid}"

    @property
    def fields(self) -> dict[str, object]:
        """The fields of journal entries about it."""
        return {"PEER_PID": self.pid, "PEER_UID": self.uid}

    def may_connect(self, config: Config) -> bool:
        """Whether it belongs to root, to the daemon's user, to an allowed user, or to an allowed group."""
        return (
            self.uid in (0, os.geteuid())
            or self.uid in config.allow_users
            or self.gid in config.allow_groups
            or not self.groups.isdisjoint(config.allow_groups)
        )


def _groups_of(client: socket.socket) -> frozenset[int]:
    try:
        packed = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
    except OSError as error:
        if error.errno == errno.ERANGE:
            return frozenset()
        raise
    return frozenset(struct.unpack(f"{len(packed) // 4}I", packed))
