# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The Backend face of the stream transport: it joins the parts and does nothing else.

send(), flush(), wait() and gathering are bound to the parts in the constructor, which saves a Python call for each
message.
"""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Collection

from msgd.backends.base import Backend, BackendStatistics, Deliver, PlainSender
from msgd.backends.stream.connecting import Connector
from msgd.backends.stream.incoming import Incoming
from msgd.backends.stream.listener import Listener
from msgd.backends.stream.outgoing import Outgoing
from msgd.backends.stream.peers import Peers
from msgd.backends.stream.poller import Poller
from msgd.backends.stream.pool import Pool
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import TransportError
from msgd.presence import Presence
from msgd.presence.socket_path import remove_socket
from msgd.results import SendStatus
from msgd.wire.server_id import ServerID


class StreamBackend(Backend):
    """The stream endpoint of this process."""

    gathers = True

    def __init__(self, config: Config, presence: Presence, drops: Drops) -> None:
        super().__init__(config, presence, drops)
        self._peers = Peers(config, drops)
        with contextlib.ExitStack() as opened:
            self._poller = opened.enter_context(contextlib.closing(Poller(self.spinner)))
            self._pool = Pool(config, presence, drops, self._poller, self._peers)
            opened.callback(self._pool.close_all)
            self._listener = Listener(presence, drops, self._poller, self._pool)
            opened.pop_all()
        self._connector = Connector(presence, self._poller, self._peers, self._pool)
        self._outgoing = Outgoing(config, drops, self._poller, self._peers, self._pool, self._connector)
        self._incoming = Incoming(drops, self._poller, self._pool, self._listener, self._connector)
        self.unsent = self._peers.blocked
        self.gathered = self._outgoing.gathering
        self.send = self._outgoing.send  # type: ignore[method-assign]
        self.flush = self._outgoing.flush  # type: ignore[method-assign]
        self.wait = self._poller.wait  # type: ignore[method-assign]
        self.begin_gathering = self._outgoing.begin_gathering  # type: ignore[method-assign]
        self.end_gathering = self._outgoing.end_gathering  # type: ignore[method-assign]
        try:
            self._listener.open()
        except OSError as error:
            self.abandon()
            raise TransportError(f"{presence.socket_directory}/{presence.pid}: {error.strerror}") from error

    def fileno(self) -> int:
        return self._poller.fileno()

    def send(
        self,
        dst: ServerID,
        src: ServerID,
        message_type: int,
        data: bytes,
        fds: Collection[int] = (),
        duplicates_allowed: bool = True,
    ) -> SendStatus:
        return self._outgoing.send(dst, src, message_type, data, fds, duplicates_allowed)

    def plain_sender(self, lock: threading.RLock) -> PlainSender | None:
        return self._outgoing.plain_sender(lock)

    def receive(self, deliver: Deliver) -> None:
        if self._poller.wake_up.is_set:
            self._poller.wake_up.clear()
        try:
            if self._incoming.receive(deliver):
                self._incoming.receive(deliver)  # the connections just accepted may hold messages already
        finally:
            if self.unsent:
                self._outgoing.reconnect_blocked()

    def wake(self) -> None:
        self._poller.wake_up.set()

    def watch_also(self, fd: int) -> None:
        self._poller.watch(fd)  # receive() passes over its events

    def take_wake(self) -> bool:
        was_set = self._poller.wake_up.is_set
        if was_set:
            self._poller.wake_up.clear()
        return was_set

    def poll_for_room(self) -> select.poll:
        return self._outgoing.poll_for_room()

    def begin_gathering(self, few: bool = False) -> None:
        self._outgoing.begin_gathering(few)

    def end_gathering(self) -> bool:
        return self._outgoing.end_gathering()

    def flush(self, timeout: float = 0.0) -> None:
        self._outgoing.flush(timeout)

    def statistics(self) -> BackendStatistics:
        return self._peers.statistics()

    def pending(self, pid: int) -> int:
        return self._peers.pending(pid)

    def give_up(self) -> int:
        return self._outgoing.give_up()

    def close(self) -> None:
        if not self._pool.is_closed:
            remove_socket(self.presence.socket_dir_fd, str(self.presence.pid))
            self._pool.end_all()
            self.abandon()

    def abandon(self) -> None:
        self._poller.close()
        self._listener.close()
        self._pool.close_all()
        self._outgoing.discard()
        self._incoming.discard()
