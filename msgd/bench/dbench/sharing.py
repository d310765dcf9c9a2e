# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What connection processes tell each other: break requests for files that another holds, changes of directories."""

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
    """One connection process's dealings with the others.  This one sends no messages: it is the ceiling.

    `client`: this process's number.  `clients`: how many there are.
    """

    def __init__(self, files: OpenFiles, client: int, clients: int) -> None:
        self.files = files
        self.client = client
        self.clients = clients
        self.counts: Counter[str] = Counter()

    def opened(self, file: bytes, path: str) -> None:
        """Note that this process opens a file; whoever holds it exclusively gives that up first."""
        while holders := self.files.add(file, path, self.client):
            for holder in holders:
                self.counts["breaks"] += 1
                self.break_hold(file, holder)

    def break_hold(self, file: bytes, holder: int) -> None:
        """Make the holder share the file: here without asking it."""
        self.files.share(file, holder)

    def closed(self, file: bytes) -> None:
        """Note that this process has closed a file."""
        self.files.remove(file, self.client)

    def changed(self, path: str) -> None:
        """Tell those who watch the directory that something in it was made, renamed or removed."""

    def turn(self) -> None:
        """Between two operations: see what the others have to say."""

    def finish(self) -> None:
        """Hear what is still on its way."""


class MessagingSharing(Sharing):
    """The same with messages.

    `everybody`: the server ids by client number.  `watchers`: who watches this client's own directory; the others'
    directories are their business, and all other directories are watched by all.
    """

    def __init__(
        self,
        files: OpenFiles,
        client: int,
        messaging: Messaging,
        everybody: Mapping[int, ServerID],
        watchers: Sequence[int],
        own: str,
        patience: float,
    ) -> None:
        super().__init__(files, client, len(everybody))
        self._messaging = messaging
        self._others = {number: server_id for number, server_id in everybody.items() if number != client}
        self._watchers = [everybody[number] for number in watchers]
        self._own = own
        self._patience = patience
        self._awaited: tuple[int, bytes] | None = None
        self._heard_out = 0
        messaging.register(MessageType.SMB_BREAK_REQUEST, self._give_up)
        messaging.register(BREAK_RESPONSE, self._given_up)
        messaging.register(MessageType.PVFS_NOTIFY, self._noticed)
        messaging.register(FINAL, self._ended)

    def break_hold(self, file: bytes, holder: int) -> None:
        dst = self._others[holder]
        self._awaited = (dst.pid, file)
        self._send(dst, MessageType.SMB_BREAK_REQUEST, file)
        if not dispatch_until(self._messaging, lambda: self._awaited is None, self._patience):
            raise RunFailed(f"client {holder} has not answered a break request")

    def changed(self, path: str) -> None:
        own = path == self._own or path.startswith(f"{self._own}/")
        data = os.fsencode(path)
        for watcher in self._watchers if own else self._others.values():
            self.counts["notifies"] += 1
            self._send(watcher, MessageType.PVFS_NOTIFY, data)

    def turn(self) -> None:
        self._messaging.dispatch()

    def finish(self) -> None:
        for other in self._others.values():
            self._messaging.send(other, FINAL, timeout=self._patience)
        if not dispatch_until(self._messaging, lambda: self._heard_out == len(self._others), self._patience):
            raise RunFailed(f"{len(self._others) - self._heard_out} last messages of other clients are missing")

    def _send(self, dst: ServerID, message_type: int, data: bytes) -> None:
        self.counts["messages"] += 1
        self._messaging.send(dst, message_type, data, timeout=self._patience)

    def _give_up(self, message: Message) -> None:
        self.files.share(message.data, self.client)
        self.counts["messages"] += 1
        self._messaging.reply(message, BREAK_RESPONSE, message.data)

    def _given_up(self, message: Message) -> None:
        if self._awaited == (message.src.pid, message.data):
            self._awaited = None

    def _noticed(self, message: Message) -> None:
        self.counts["notices"] += 1

    def _ended(self, message: Message) -> None:
        self._heard_out += 1
