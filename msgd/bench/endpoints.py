# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the measuring processes share: the benchmarks' message types, and serving until told to stop."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.message_types import TMP_BASE

DATA = TMP_BASE + 0x100
"""A message that counts."""

ACK = TMP_BASE + 0x101
"""The answer to it."""

FINAL = TMP_BASE + 0x102
"""A sender's last message to a receiver; its data is the number of those before it, in decimal."""


def answer_pings(channel: Connection, config: Config) -> None:
    """A process that says its server id and then answers pings, as every context does, until it is killed."""
    with Messaging(config) as messaging:
        channel.send(messaging.server_id)
        while True:
            messaging.dispatch(None)


def serve_until_told(messaging: Messaging, channel: Connection) -> None:
    """Dispatch until there is something in the channel (or its other end is closed)."""
    poll = select.poll()
    poll.register(messaging.fileno(), select.POLLIN)
    poll.register(channel, select.POLLIN)
    while True:
        messaging.dispatch()
        if any(fd == channel.fileno() for fd, _ in poll.poll()):
            return


def dispatch_until(messaging: Messaging, ready: Callable[[], object], patience: float) -> bool:
    """Dispatch until `ready()`; False if nothing has come in for `patience` seconds."""
    while not ready():
        if not messaging.dispatch(patience):
            return bool(ready())
    return True


def drain(messaging: Messaging, patience: float) -> int:
    """Send on what is queued, as long as the queue gets shorter within `patience` seconds; what is left in it."""
    left = messaging.statistics().queued_messages
    deadline = time.monotonic() + patience
    while left and (rest := deadline - time.monotonic()) > 0:
        messaging.dispatch(min(rest, 0.1))
        now = messaging.statistics().queued_messages
        if now < left:
            deadline = time.monotonic() + patience
        left = now
    return left
