# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Let monitors see the messages of an endpoint (`msgd:monitor = yes`, `msgcontrol monitor`).

Rule 1.  Without a monitor nothing of this is in the way of a message: a monitor installs an observer and its own
transmit(), and with the last monitor both go.
Rule 2.  Only root and this process's own user may watch.  The kernel names the monitor's user (SO_PEERCRED); a message
that asks for it proves nothing, since trusted users may send one as well.
Rule 3.  A monitor that does not read slows nobody down: what its socket has no room for is counted and not told.
Rule 4.  A message is told where it is received; where it is sent, only if its receiver cannot be monitored (Samba's
processes, and those of msgd that do not allow it).  So each message is seen once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from msgd.errors import MalformedMessage
from msgd.linux import Credentials
from msgd.messaging.observer import Observer
from msgd.results import SendStatus
from msgd.wire.header import Message
from msgd.wire.monitor import FIRST_BYTES, SOCKET_PREFIX, Event, Filter
from msgd.wire.server_id import ServerID

if TYPE_CHECKING:
    from msgd.messaging.endpoint import Endpoint

logger = logging.getLogger("msgd")


class _Monitor:
    """One monitor: its connection, what it wants to see, and how much it could not be told."""

    def __init__(self, connection: socket.socket, wanted: Filter) -> None:
        self.connection = connection
        self.wanted = wanted
        self.dropped = 0
        self._lock = threading.Lock()

    def tell(self, event: Event) -> bool:
        """Send the event, or count it (Rule 3).  Returns False if the monitor has gone."""
        with self._lock:
            try:
                self.connection.send(event._replace(dropped=self.dropped).pack())
            except BlockingIOError:
                self.dropped += 1
            except OSError:
                return False
            else:
                self.dropped = 0
        return True


class Monitored(Observer):
    """The monitors of an endpoint.  As its observer, it stands in front of the one that was there before."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._before = endpoint.observer or Observer()
        self._monitors: dict[int, _Monitor] = {}

    def add(self, pid: int, data: bytes) -> None:
        """Let the process that has sent this MONITOR message watch, if it may.  A second time replaces its filter."""
        try:
            wanted = Filter.unpack(data)
            if pid in self._monitors:
                self._monitors[pid].wanted = wanted
                return
            connection = self._connect(pid)
        except (OSError, MalformedMessage) as error:
            logger.warning("pid %d wants to monitor this process: %s", pid, error)
            return
        self._monitors[pid] = _Monitor(connection, wanted)
        if self._endpoint.monitored is not self:
            self._endpoint.set_monitored(self)

    def _connect(self, pid: int) -> socket.socket:
        """Connect to the monitor's socket.  Raises OSError, PermissionError if it may not watch (Rule 2)."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            connection.connect(f"/proc/self/fd/{self._endpoint.presence.directory_fd}/{SOCKET_PREFIX}{pid}")
            uid = Credentials.of_peer(connection).uid
            if uid not in (0, os.geteuid()):
                raise PermissionError(f"uid {uid} may not; only root and uid {os.geteuid()} may")
        except BaseException:
            connection.close()
            raise
        return connection

    def transmit(
        self,
        dst: ServerID,
        src: ServerID,
        message_type: int,
        data: bytes,
        fds: Collection[int] = (),
        duplicates_allowed: bool = True,
    ) -> SendStatus:
        """Send as the backend does, and tell of it if the receiver does not (Rule 4)."""
        status = self._endpoint.backend.send(dst, src, message_type, data, fds, duplicates_allowed)
        process = self._endpoint.presence.process(dst.pid)
        if process is None or not process.is_monitored:
            self._tell(src, dst, message_type, data, is_received=False)
        return status

    def received(self, message: Message) -> None:
        self._tell(message.src, message.dst, message.type, message.data, is_received=True)
        self._before.received(message)

    def sent(self, message_type: int, length: int) -> None:
        self._before.sent(message_type, length)

    def handled(self, message: Message, seconds: float) -> None:
        self._before.handled(message, seconds)

    def dropped(self, reason: str, number: int) -> None:
        self._before.dropped(reason, number)

    def dispatched(self) -> None:
        self._before.dispatched()

    def _tell(self, src: ServerID, dst: ServerID, message_type: int, data: bytes, *, is_received: bool) -> None:
        event = None
        for pid, monitor in tuple(self._monitors.items()):
            if monitor.wanted.wants(src, dst, message_type):
                if event is None:
                    event = Event(
                        time.time(), 0, is_received, message_type, src, dst, len(data), bytes(data[:FIRST_BYTES])
                    )
                if not monitor.tell(event):
                    self._remove(pid)

    def _remove(self, pid: int) -> None:
        monitor = self._monitors.pop(pid, None)
        if monitor is not None:
            with contextlib.suppress(OSError):
                monitor.connection.close()
            if not self._monitors:
                self._endpoint.end_monitored()

    @property
    def before(self) -> Observer | None:
        """The observer that was there before; None if there was none."""
        return None if type(self._before) is Observer else self._before

    def close(self) -> None:
        """Let all monitors go, as at the end and in a forked child."""
        while self._monitors:
            _, monitor = self._monitors.popitem()
            monitor.connection.close()
