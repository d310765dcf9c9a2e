# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The main process's part of the gateway: it accepts clients and forks a connection process for each.

Rule 1.  The main process uses what the kernel says about a client.  It never reads what the client says.

Rule 2.  A client that is refused gets one line that says why, and its connection stays open for a moment.  The client
may be about to write its request: a closed socket would kill it (SIGPIPE) before it has read that line.

Rule 3.  At the end, clients that wait in the queue of a socket of our own are accepted first: then they get the last
word, or are served, as all the others are.  Those in a socket of the service manager's wait for the next msgd.
"""

from __future__ import annotations

import contextlib
import logging
import socket

from msgd.daemon.children import Children, LetIn
from msgd.daemon.gateway.peer import Peer
from msgd.daemon.gateway.process import serve
from msgd.daemon.listener import Listener
from msgd.daemon.loop import NEVER, Loop, LoopTimer
from msgd.daemon.metrics.counters import Counters
from msgd.daemon.metrics.metrics import Metrics
from msgd.daemon.settings import Settings
from msgd.drops import Pace
from msgd.events import CONNECTION_FAILED, REFUSED, and_others, fields
from msgd.wire.gateway.replies import FAILED, TOO_MANY, write_bye

logger = logging.getLogger("msgd.daemon")

_ACCEPTED_AT_ONCE = 16
"""Clients that are accepted in one turn of the loop."""

_BACK_OFF = 1.0
"""Seconds of backing off after the system had no descriptor or no process left for a client."""

_LINGER = 1.0
"""Seconds that the connection of a refused client stays open."""

_MOST_LINGERING = 64
"""The largest number of such connections; one more closes the oldest."""


class Gateway:
    """Accepts clients from `listener` until close().

    `children` are the connection processes, `lifeline` is the pipe they watch, `metrics` holds their counters.
    """

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        listener: Listener,
        children: Children,
        lifeline: int | None,
        metrics: Metrics | None,
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._listener = listener
        self._children = children
        self._lifeline = lifeline
        self._metrics = metrics
        self._pace = Pace()
        self._resume_timer = loop.call_later(NEVER, self._resume)
        self._lingering: dict[socket.socket, LoopTimer] = {}
        loop.on_readable(listener.fileno(), self._accept)

    def close(self) -> None:
        """Accept the clients that have connected, then no more.  Connected clients stay."""
        try:
            for client in self._listener.last_clients():
                if self._admit(client):
                    client.close()
        except OSError as error:
            logger.error("not all waiting clients can be accepted: %s", error, extra=fields(CONNECTION_FAILED))
        self._resume_timer.cancel()
        self._loop.on_readable(self._listener.fileno(), None)
        self._listener.close()
        while self._lingering:
            self._close_oldest()

    def abandon(self) -> None:
        """In a forked child: close the copies."""
        self._listener.abandon()
        for client in self._lingering:
            client.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client = self._listener.accept()
            except OSError as error:
                self._back_off(f"no client can be accepted: {error}")
                return
            if client is None:
                return
            if self._admit(client):
                client.close()

    def _admit(self, client: socket.socket) -> bool:
        """Start a connection process for the client, or refuse it.

        Returns whether a connection process was started.
        """
        config, children = self._settings.config, self._children
        peer = Peer.of(client)
        if not peer.may_connect(config):
            self._refuse(client, peer, "not-allowed", f"uid {peer.uid} may not connect; msgd:allow users says who may")
        elif config.max_clients and len(children) >= config.max_clients:
            self._refuse(client, peer, TOO_MANY, f"{len(children)} clients are connected (msgd:max clients)")
        elif peer.uid and children.number_of(peer.uid) >= config.max_clients_per_user:
            number = children.number_of(peer.uid)
            text = f"{number} clients of uid {peer.uid} are connected (msgd:max clients per user)"
            self._refuse(client, peer, TOO_MANY, text)
        else:
            try:
                self._start(client, peer)
            except OSError as error:
                self._say(client, FAILED, f"no connection process can be started: {error.strerror}")
                self._back_off(f"no process for the connection of {peer}: {error}")
            else:
                return True
        return False

    def _start(self, client: socket.socket, peer: Peer) -> None:
        counters = None if self._metrics is None else Counters()

        def body(let_signals_in: LetIn) -> int:
            return serve(client, peer, self._settings, self._lifeline, counters, let_signals_in)

        pid = self._children.start(peer.uid, body)
        if self._metrics is not None and counters is not None:
            self._metrics.started(pid, counters)

    def _refuse(self, client: socket.socket, peer: Peer, code: str, text: str) -> None:
        number = self._pace.due(code)
        if number:
            about_it = fields(REFUSED, **peer.fields, ERROR=code, NUMBER=number)
            logger.warning("%s is refused%s: %s", peer, and_others(number), text, extra=about_it)
        self._say(client, code, text)

    def _say(self, client: socket.socket, code: str, text: str) -> None:
        client.setblocking(False)
        with contextlib.suppress(OSError):  # the client has gone
            client.send(write_bye(code, text))
            client.shutdown(socket.SHUT_WR)
        if len(self._lingering) >= _MOST_LINGERING:
            self._close_oldest()
        self._lingering[client] = self._loop.call_later(_LINGER, self._close_oldest)

    def _close_oldest(self) -> None:
        client = next(iter(self._lingering))
        self._lingering.pop(client).cancel()
        client.close()

    def _back_off(self, why: str) -> None:
        """The system has run out of something: accept nobody for a while instead of trying in each turn."""
        logger.error("%s; clients wait for %g seconds", why, _BACK_OFF, extra=fields(CONNECTION_FAILED))
        self._loop.on_readable(self._listener.fileno(), None)
        self._resume_timer.restart(_BACK_OFF)

    def _resume(self) -> None:
        self._loop.on_readable(self._listener.fileno(), self._accept)
