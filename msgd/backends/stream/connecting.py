# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Which connection a process is written to on: finding the process, connecting to it, connecting again.

Rule 1. A process is written to on one connection at a time: the one opened here, or the one that it has opened.

Rule 2. If two processes connect to each other at the same time, the connection that the lower pid opened stays.  The
process with the higher pid ends its own when it accepts that one, and goes on there.

Rule 3. A new stream to a process begins only after the last one has ended, and streams are numbered (incoming.py
needs both to keep the order).  So a connection always ends before another takes its place.

Rule 4. The lock file and SO_PEERCRED say who the process is, before a byte is written.  What waits for a process that
is gone is dropped and counted; it is never written to the next process with the same pid.

Rule 5. A full backlog (connect() fails with EAGAIN) makes the messages wait.  No descriptor reports that the backlog
has room again, so the poller's timer starts the next attempt.
"""

from __future__ import annotations

import time

from msgd.backends.sockets import check_addressed
from msgd.backends.stream.connection import Connection, connect, no_such_process
from msgd.backends.stream.peers import Peer, Peers
from msgd.backends.stream.poller import RETRY_INTERVAL, Poller
from msgd.backends.stream.pool import Pool
from msgd.errors import NoSuchProcess, TransportError
from msgd.presence import Presence
from msgd.wire.server_id import ServerID
from msgd.wire.stream import Hello

_MESSAGING_TYPE = "stream"


class Connector:
    """Gives each peer the connection that it is written to on."""

    def __init__(self, presence: Presence, poller: Poller, peers: Peers, pool: Pool) -> None:
        self._presence = presence
        self._poller = poller
        self._peers = peers
        self._pool = pool
        self._by_pid = peers.by_pid

    def find(self, dst: ServerID) -> Peer:
        """The process `dst` according to its lock file, connected unless that must wait.

        Raises NoSuchProcess, TransportError.
        """
        process = self._presence.process(dst.pid)
        peer = self._by_pid.get(dst.pid)
        if peer is not None and (process is None or process.unique_id != peer.unique_id):
            self._forget(peer)
            peer = None
        if process is None:
            raise no_such_process(dst.pid)
        check_addressed(dst, process, _MESSAGING_TYPE)
        if peer is None:
            peer = self._peers.new(process.pid, process.unique_id)
        if peer.connection is None and not peer.queue:
            self._connect(peer)
        self._by_pid[dst.pid] = peer
        return peer

    def _forget(self, peer: Peer) -> None:
        """The process is gone: drop what waits for it, and end its connection."""
        self._peers.remove(peer)
        if peer.connection is not None:
            self._pool.end(peer.connection)

    def _connect(self, peer: Peer) -> bool:
        """Connect to a process.  Returns False if that must wait.  Raises NoSuchProcess, TransportError."""
        if self._pool.make_room(ours=True):
            try:
                connected = connect(self._presence, peer.pid)
            except BlockingIOError:
                pass  # its backlog is full
            else:
                self._use(peer, self._pool.add(connected, peer.pid))
                return True
        self._retry_later(peer)
        return False

    def reconnect(self, peer: Peer) -> bool:
        """Connect to a process for which messages wait.  Returns False if that must wait, or if the process is gone."""
        if time.monotonic() < peer.retry_at:
            return False
        try:
            process = self._presence.process(peer.pid)
            if process is not None and process.unique_id == peer.unique_id:
                return self._connect(peer)
        except NoSuchProcess:
            pass
        except TransportError:
            self._retry_later(peer)  # a lack of descriptors or memory passes
            return False
        self._forget(peer)
        return False

    def _retry_later(self, peer: Peer) -> None:
        peer.retry_at = time.monotonic() + RETRY_INTERVAL
        self._poller.wake_after(RETRY_INTERVAL)

    def adopt(self, connection: Connection, hello: Hello) -> None:
        """Write to a process on the connection that it has opened, unless rule 2 says that ours stays."""
        peer = self._by_pid.get(connection.pid)
        if peer is not None and peer.unique_id != hello.unique_id:
            if not self._pool.is_writer_alive(connection):
                return  # an earlier process had the pid, and this is what it wrote before it ended
            self._forget(peer)
            peer = None
        if peer is not None and peer.connection is not None:
            if peer.connection.is_ours and self._presence.pid <= peer.pid:
                return
            self._pool.end(peer.connection)
        self._use(peer or self._peers.new(connection.pid, hello.unique_id), connection)

    def _use(self, peer: Peer, connection: Connection) -> None:
        """Write to the process on this connection from now on."""
        peer.connection = connection
        self._by_pid[peer.pid] = peer
        if peer.pid in self._peers.blocked:
            self._poller.set_writable(connection.fd, enabled=True)
        self._pool.trim(connection)
