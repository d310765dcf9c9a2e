# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Accepting: the socket that other processes connect to, and who is let in.

Rule 1. SO_PEERCRED tells whose connection it is before a byte of it is read.  Users who are not trusted are turned
away, counted and logged.

Rule 2. Where there is no room for another connection (pool.py) or no descriptor left, the rest waits in the backlog.
The listening socket is not polled until the poller's timer has fired, or epoll would report it all the time.

Rule 3. accept_all() ignores the bounds.  It runs before a hello is taken, because an older stream of the same process
may still be in the backlog (incoming.py, rule 3).
"""

from __future__ import annotations

import _socket
import socket
from collections import deque
from collections.abc import Iterator
from operator import call, itemgetter
from typing import Any, cast

from msgd.backends.at_once import head_of, if_empty, take_head
from msgd.backends.sockets import bind_socket
from msgd.backends.stream.connection import new_socket
from msgd.backends.stream.poller import RETRY_INTERVAL, Poller
from msgd.backends.stream.pool import Pool
from msgd.drops import Drops
from msgd.linux import Credentials
from msgd.presence import Presence

_BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel's own bound (net.core.somaxconn) is the same by default."""

_ACCEPTS_PER_ROUND = 64
"""Connections that one round of receive() accepts, so that a flood does not keep dispatch from its other work."""


class Listener:
    """The listening socket of this process."""

    def __init__(self, presence: Presence, drops: Drops, poller: Poller, pool: Pool) -> None:
        self._presence = presence
        self._drops = drops
        self._poller = poller
        self._pool = pool
        self._socket = new_socket()
        self._accepted: deque[_socket.socket] = deque()
        """The connection that has been accepted and is not in the pool yet; there is at most one."""
        self.fd = self._socket.fileno()

    def open(self) -> None:
        """Make this process reachable under its pid.  Raises OSError."""
        bind_socket(self._socket, self._presence)
        self._socket.listen(_BACKLOG)
        self._poller.watch(self.fd)

    @property
    def has_accepted(self) -> bool:
        """Whether an exception has left a connection that accept() is to take in."""
        return bool(self._accepted)

    def accept(self) -> bool:
        """Accept what waits in the backlog, as far as there is room.  Returns whether there are new connections."""
        return self._accept(_ACCEPTS_PER_ROUND, within_bounds=True)

    def accept_all(self) -> bool:
        """Accept everything that waits in the backlog.  Returns whether there are new connections."""
        return self._accept(_BACKLOG + 1, within_bounds=False)

    def resume(self) -> None:
        """The timer has fired: accept again."""
        self._poller.set_readable(self.fd, enabled=True)

    def close(self) -> None:
        """Close the socket; its file stays."""
        self._socket.close()
        for connected in self._accepted:
            connected.close()
        self._accepted.clear()

    def _accept(self, limit: int, *, within_bounds: bool) -> bool:
        accepted = False
        for _ in range(limit):
            if within_bounds and not self._pool.make_room(ours=False):
                self._pause()
                break
            try:
                if not self._accepted:
                    next(self._accepting())
            except BlockingIOError:
                break
            except OSError:  # no descriptors left
                if self._pool.release_reserve():
                    continue
                self._pause()
                break
            connected = head_of(self._accepted)
            if connected is not None:  # otherwise a signal's handler has dispatched
                accepted |= self._settle(connected)
        return accepted

    def _accepting(self) -> Iterator[object]:
        """Its next() accepts a connection into `_accepted`, in one step: its stream may hold messages already."""
        accepted: Any = map(call, (self._socket._accept,))  # type: ignore[attr-defined]
        fds: Any = map(itemgetter(0), accepted)
        sockets: Any = map(_socket.socket, (socket.AF_UNIX,), (socket.SOCK_STREAM,), (0,), fds)
        return if_empty(self._accepted, sockets)

    def _settle(self, accepted: _socket.socket) -> bool:
        """Take in the connection that has been accepted; return whether it is one of a process that may be heard."""
        connected = cast("socket.socket", accepted)
        pid, uid, _ = Credentials.of_peer(connected)
        if uid not in self._presence.trusted_uids:
            if not take_head(self._accepted, accepted, (connected.close,)):
                return False
            detail = f"uid {uid} (pid {pid}) is neither root, this user nor in msgd:trusted users"
            self._drops("of a user not to be heard", detail)
            return False
        connected.setblocking(False)
        self._pool.end_accepted(pid)
        return take_head(self._accepted, accepted, (self._pool.adding(connected, pid),))

    def _pause(self) -> None:
        self._poller.set_readable(self.fd, enabled=False)
        self._poller.wake_after(RETRY_INTERVAL)
