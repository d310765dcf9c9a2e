# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The last word to clients that are not served, and their connections, which stay open for a moment.

Such a client may be about to write its request: a closed socket would kill it (SIGPIPE) before it has read why it is
refused.
"""

from __future__ import annotations

import contextlib
import resource
import socket

from msgd.daemon.loop import Loop, LoopTimer
from msgd.wire.gateway.replies import write_bye

_LINGER = 1.0
"""Seconds that the connection of a refused client stays open."""

_MOST_LINGERING = 64
"""The largest number of such connections; one more closes the oldest."""

_SHARE = 8
"""One descriptor in so many is used for them at most, where there are few."""


class LingeringClients:
    """Connections with a last word in them, the oldest first."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._timers: dict[socket.socket, LoopTimer] = {}

    def say_bye(self, client: socket.socket, code: str, text: str) -> None:
        """Say the last word to a client and let its connection linger."""
        client.setblocking(False)
        with contextlib.suppress(OSError):  # the client has gone
            client.send(write_bye(code, text))
            client.shutdown(socket.SHUT_WR)
        if len(self._timers) >= min(_MOST_LINGERING, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE)):
            self._close_oldest()
        self._timers[client] = self._loop.call_later(_LINGER, self._close_oldest)

    def close(self) -> bool:
        """Close them all.  Returns whether there were any."""
        had_any = bool(self._timers)
        while self._timers:
            self._close_oldest()
        return had_any

    def abandon(self) -> None:
        """In a forked child: close the copies."""
        for client in self._timers:
            client.close()

    def _close_oldest(self) -> None:
        client = next(iter(self._timers))
        self._timers.pop(client).cancel()
        client.close()
