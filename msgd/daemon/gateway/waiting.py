# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The clients that have been let in and wait for their connection process.

Rule 1.  The privileged come first, then one client of each user in turn.

Rule 2.  The caller says which users may have another process started now; the clients of the others wait.  How long a
client of one user waits does not depend on how many another user has.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from msgd.daemon.gateway.peer import Peer
from msgd.daemon.gateway.places import is_privileged

_INT = struct.Struct("i")


class Waiting(NamedTuple):
    """A client and who it is."""

    client: socket.socket
    peer: Peer


class WaitingClients:
    """Queues of clients, one for each user."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[Waiting]] = {}
        """By uid; the user whose turn comes first is first."""

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def numbers(self) -> Iterator[tuple[int, int]]:
        """How many wait of each user."""
        return ((uid, len(queue)) for uid, queue in self._queues.items())

    def append(self, client: socket.socket, peer: Peer) -> None:
        """Let a client wait."""
        self._queues.setdefault(peer.uid, deque()).append(Waiting(client, peer))

    def take(self, may_start: Callable[[int], bool]) -> Waiting | None:
        """The next client whose user may have a process started; None if there is none.

        A client that has gone without having said anything needs no process: its connection is closed.
        """
        for uid in sorted(self._queues, key=lambda uid: not is_privileged(uid)):
            if may_start(uid) and (waiting := self._take_of(uid)) is not None:
                return waiting
        return None

    def _take_of(self, uid: int) -> Waiting | None:
        queue = self._queues.pop(uid)
        waiting = None
        while queue and waiting is None:
            waiting = queue.popleft()
            if _has_gone(waiting.client):
                waiting.client.close()
                waiting = None
        if queue:
            self._queues[uid] = queue
        return waiting

    def close(self) -> None:
        """In a forked child: close the copies."""
        for queue in self._queues.values():
            for waiting in queue:
                waiting.client.close()
        self._queues.clear()


def _has_gone(client: socket.socket) -> bool:
    """Whether the client has closed the connection and has said nothing.  What it said would still be done."""
    poll = select.poll()
    poll.register(client, 0)  # hangups are reported without being asked for
    return bool(poll.poll(0)) and not _INT.unpack(fcntl.ioctl(client, termios.FIONREAD, bytes(_INT.size)))[0]
