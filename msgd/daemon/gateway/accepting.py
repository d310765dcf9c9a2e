# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The main process's part of the gateway: it accepts clients and forks a connection process for each.

Rule 1.  The main process uses what the kernel says about a client.  It never reads what the client says.

Rule 2.  Whether a client is let in is decided before anything is forked: may its user connect (peer.py), and is there
a place for it (places.py)?  A client that is refused gets one line that says why (lingering.py).

Rule 3.  A client that is let in waits until its user may have another process started (starts.py, waiting.py) and
gets one with a share of its user's memory (shares.py).  One process is started a turn of the loop, so that a crowd of
clients delays messages and signals by one fork at most.

Rule 4.  At the end, clients that wait in the queue of a socket of our own are accepted first: then they get the last
word, or are served, as all the others are.  Those in a socket of the service manager's wait for the next msgd.
"""

from __future__ import annotations

import logging
import resource
import socket
from collections import Counter
from collections.abc import Iterable

from msgd.daemon.children import Children, LetIn
from msgd.daemon.gateway.lingering import LingeringClients
from msgd.daemon.gateway.peer import Peer
from msgd.daemon.gateway.places import is_privileged, why_no_place
from msgd.daemon.gateway.process import serve
from msgd.daemon.gateway.shares import UserMemory
from msgd.daemon.gateway.starts import Starts
from msgd.daemon.gateway.waiting import WaitingClients
from msgd.daemon.listener import Listener
from msgd.daemon.loop import NEVER, Loop
from msgd.daemon.metrics.counters import Counters
from msgd.daemon.metrics.metrics import Metrics
from msgd.daemon.settings import Settings
from msgd.drops import Pace
from msgd.events import CONNECTION_FAILED, REFUSED, and_others, fields
from msgd.wire.gateway.replies import FAILED, TOO_MANY

logger = logging.getLogger("msgd.daemon")

_ACCEPTED_AT_ONCE = 16
"""Clients that are accepted in one turn of the loop."""

_BACK_OFF = 1.0
"""Seconds of backing off after the system had no descriptor or no process left for a client."""

_WAITING_SHARE = 4
"""One descriptor in so many is used at most for clients that wait for their process."""


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
        self._memory = UserMemory(children)
        self._starts = Starts(loop, children, self._start_next)
        self._waiting = WaitingClients()
        self._lingering = LingeringClients(loop)
        self._resume_timer = loop.call_later(NEVER, self._resume)
        self._next_timer = loop.call_later(NEVER, self._start_next)
        loop.on_readable(listener.fileno(), self._accept)

    def close(self) -> None:
        """Accept the clients that have connected, then no more.  Connected clients stay."""
        try:
            for client in self._listener.last_clients():
                self._admit(client)
        except OSError as error:
            logger.error("not all waiting clients can be accepted: %s", error, extra=fields(CONNECTION_FAILED))
        while (waiting := self._waiting.take(lambda uid: True)) is not None:
            self._try_to_start(*waiting)
        for timer in (self._resume_timer, self._next_timer):
            timer.cancel()
        self._loop.on_readable(self._listener.fileno(), None)
        self._listener.close()
        self._starts.close()
        self._lingering.close()

    def abandon(self) -> None:
        """In a forked child: close the copies."""
        self._listener.abandon()
        self._starts.abandon()
        self._waiting.close()
        self._lingering.abandon()

    def note_ended(self, uids: Iterable[int]) -> None:
        """Connection processes of these users have ended: others may have their memory, and their turn."""
        for uid in uids:
            self._divide_memory(uid)
        self._start_next()

    def reload(self) -> None:
        """The settings may have changed."""
        for uid in self._children.numbers():
            self._divide_memory(uid)

    def _divide_memory(self, uid: int) -> None:
        if not is_privileged(uid):
            self._memory.divide(uid, self._settings.config)

    # Accepting

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client = self._listener.accept()
            except OSError as error:
                if not self._lingering.close():
                    self._back_off(f"no client can be accepted: {error}")
                return
            if client is None:
                return
            self._admit(client)

    def _admit(self, client: socket.socket) -> None:
        """Let the client wait for its connection process, or refuse it."""
        config = self._settings.config
        peer = Peer.of(client)
        if not peer.may_connect(config):
            self._refuse(client, peer, "not-allowed", f"uid {peer.uid} may not connect; msgd:allow users says who may")
        elif reason := why_no_place(config, peer.uid, self._places_taken()) or self._why_not_wait(peer.uid):
            self._refuse(client, peer, TOO_MANY, reason)
        else:
            self._waiting.append(client, peer)
            if not self._next_timer.is_running:
                self._next_timer.restart(0)

    def _places_taken(self) -> Counter[int]:
        taken = Counter(self._children.numbers())
        taken.update(dict(self._waiting.numbers()))
        return taken

    def _why_not_wait(self, uid: int) -> str | None:
        """Why the client cannot wait: it would need a descriptor that the main process needs for itself."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _WAITING_SHARE
        if len(self._waiting) < most or is_privileged(uid):
            return None
        return f"{len(self._waiting)} clients wait for their connection processes (ulimit -n)"

    def _refuse(self, client: socket.socket, peer: Peer, code: str, text: str) -> None:
        number = self._pace.due(code)
        if number:
            about_it = fields(REFUSED, **peer.fields, ERROR=code, NUMBER=number)
            logger.warning("%s is refused%s: %s", peer, and_others(number), text, extra=about_it)
        self._lingering.say_bye(client, code, text)

    # Starting

    def _start_next(self) -> None:
        """Start the process of the client whose turn it is, and see to the others in the next turn of the loop."""
        if self._resume_timer.is_running:
            return
        waiting = self._waiting.take(self._starts.may_start)
        if waiting is not None:
            self._try_to_start(*waiting)
            self._next_timer.restart(0)

    def _try_to_start(self, client: socket.socket, peer: Peer) -> None:
        config = self._settings.config
        try:
            memory: int | None = config.client_memory
            if not is_privileged(peer.uid):
                memory = self._memory.limit_for_another(peer.uid, config)
            if memory is None:
                text = f"the clients of uid {peer.uid} use up its memory (msgd:user memory)"
                self._refuse(client, peer, TOO_MANY, text)
                return
            self._start(client, peer, memory)
        except (OSError, MemoryError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no memory is left"
            self._lingering.say_bye(client, FAILED, f"no connection process can be started: {reason}")
            self._back_off(f"no process for the connection of {peer}: {reason}")
        else:
            client.close()

    def _start(self, client: socket.socket, peer: Peer, memory: int) -> None:
        counters = None if self._metrics is None else Counters()

        def body(let_signals_in: LetIn) -> int:
            def has_started() -> None:
                let_signals_in()
                self._starts.tell()

            return serve(client, peer, self._settings, memory, self._lifeline, counters, has_started)

        pid = self._children.start(peer.uid, body)
        if self._metrics is not None and counters is not None:
            self._metrics.started(pid, counters)

    def _back_off(self, why: str) -> None:
        """The system has run out of something: accept nobody for a while instead of trying in each turn."""
        logger.error("%s; clients wait for %g seconds", why, _BACK_OFF, extra=fields(CONNECTION_FAILED))
        self._loop.on_readable(self._listener.fileno(), None)
        self._resume_timer.restart(_BACK_OFF)

    def _resume(self) -> None:
        self._loop.on_readable(self._listener.fileno(), self._accept)
        self._start_next()
