# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What connection processes tell each other: break requests for held files, and changes in directories."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from msgd.bench.dbench.open_files import OpenFiles
from msgd.bench.endpoints import FINAL, dispatch_until
from msgd.bench.workers import RunFailed
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType
from msgd.wire.server_id import ServerID

BREAK_RESPONSE = 0x307
"""The answer to SMB_BREAK_REQUEST: the file is no longer held exclusively."""


class Sharing:
    """How one connection process shares files with the others.  This class sends no messages: it is the upper limit.

    `client` is the number of this process; `clients` is the number of processes.
    """

    def __init__(self, files: OpenFiles, client: int, clients: int) -> None:
        self.files = files
        self.client = client
        self.clients = clients
        self.counts: Counter[str] = Counter()

    def opened(self, file: bytes, path: str) -> None:
        """Record that this process opens a file.  A process that holds it exclusively gives that up first."""
        while holders := self.files.add(file, path, self.client):
            for holder in holders:
                self.counts["breaks"] += 1
                self.break_hold(file, holder)

    def break_hold(self, file: bytes, holder: int) -> None:
        """Make the holder share the file.  Here the holder is not asked."""
        self.files.share(file, holder)

    def closed(self, file: bytes) -> None:
        """Record that this process has closed a file."""
        self.files.remove(file, self.client)

    def notify(self, path: str) -> None:
        """Notify the watchers of the directory that the path was created, renamed or removed."""

    def dispatch(self) -> None:
        """Handle the messages that have arrived.  Called between two operations."""

    def finish(self) -> None:
        """Receive the messages that are still in flight."""


class MessagingSharing(Sharing):
    """Shares files with the other processes by messages.

    `server_ids` has the server ids by client number.  `watchers` are the clients that watch `own`, this client's own
    directory.  All other directories are watched by all clients.
    """

    def __init__(
        self,
        files: OpenFiles,
        client: int,
        messaging: Messaging,
        server_ids: Mapping[int, ServerID],
        watchers: Sequence[int],
        own: str,
        patience: float,
    ) -> None:
        super().__init__(files, client, len(server_ids))
        self._messaging = messaging
        self._others = {number: server_id for number, server_id in server_ids.items() if number != client}
        self._watchers = [server_ids[number] for number in watchers]
        self._own = own
        self._patience = patience
        self._awaited: tuple[int, bytes] | None = None
        self._finished = 0
        messaging.register(MessageType.SMB_BREAK_REQUEST, self._handle_break_request)
        messaging.register(BREAK_RESPONSE, self._handle_break_response)
        messaging.register(MessageType.PVFS_NOTIFY, self._count_notify)
        messaging.register(FINAL, self._handle_final)

    def break_hold(self, file: bytes, holder: int) -> None:
        dst = self._others[holder]
        self._awaited = (dst.pid, file)
        self._send(dst, MessageType.SMB_BREAK_REQUEST, file)
        if not dispatch_until(self._messaging, lambda: self._awaited is None, self._patience):
            raise RunFailed(f"client {holder} has not answered a break request")

    def notify(self, path: str) -> None:
        own = path == self._own or path.startswith(f"{self._own}/")
        data = os.fsencode(path)
        for watcher in self._watchers if own else self._others.values():
            self.counts["notifies"] += 1
            self._send(watcher, MessageType.PVFS_NOTIFY, data)

    def dispatch(self) -> None:
        self._messaging.dispatch()

    def finish(self) -> None:
        for other in self._others.values():
            self._messaging.send(other, FINAL, timeout=self._patience)
        if not dispatch_until(self._messaging, lambda: self._finished == len(self._others), self._patience):
            raise RunFailed(f"{len(self._others) - self._finished} last messages of other clients are missing")

    def _send(self, dst: ServerID, message_type: int, data: bytes) -> None:
        self.counts["messages"] += 1
        self._messaging.send(dst, message_type, data, timeout=self._patience)

    def _handle_break_request(self, message: Message) -> None:
        self.files.share(message.data, self.client)
        self.counts["messages"] += 1
        self._messaging.reply(message, BREAK_RESPONSE, message.data)

    def _handle_break_response(self, message: Message) -> None:
        if self._awaited == (message.src.pid, message.data):
            self._awaited = None

    def _count_notify(self, message: Message) -> None:
        self.counts["notices"] += 1

    def _handle_final(self, message: Message) -> None:
        self._finished += 1
