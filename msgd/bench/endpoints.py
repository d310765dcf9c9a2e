# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the measuring processes share: the benchmarks' message types, and the loops that dispatch messages."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.message_types import TMP_BASE

DATA = TMP_BASE + 0x100
"""A message that is counted."""

ACK = TMP_BASE + 0x101
"""The answer to DATA."""

FINAL = TMP_BASE + 0x102
"""A sender's last message to a receiver.  In `flood` its data is the number of messages before it, in decimal."""


def answer_pings(channel: Connection, config: Config) -> None:
    """Report the server id, then dispatch until killed.  Every context answers pings by itself."""
    with Messaging(config) as messaging:
        channel.send(messaging.server_id)
        while True:
            messaging.dispatch(None)


def serve_until_told(messaging: Messaging, channel: Connection) -> None:
    """Dispatch until the channel has an object to read or its other end is closed."""
    poll = select.poll()
    poll.register(messaging.fileno(), select.POLLIN)
    poll.register(channel, select.POLLIN)
    while True:
        messaging.dispatch()
        if any(fd == channel.fileno() for fd, _ in poll.poll()):
            return


def dispatch_until(messaging: Messaging, ready: Callable[[], object], patience: float) -> bool:
    """Dispatch until `ready()` is true.  Return False if no message arrives for `patience` seconds before that."""
    while not ready():
        if not messaging.dispatch(patience):
            return bool(ready())
    return True


def drain(messaging: Messaging, patience: float) -> int:
    """Dispatch until this process's backlog is empty, or has not shrunk for `patience` seconds; return what is left."""
    left = messaging.statistics().queued_messages
    deadline = time.monotonic() + patience
    while left and (rest := deadline - time.monotonic()) > 0:
        messaging.dispatch(min(rest, 0.1))
        now = messaging.statistics().queued_messages
        if now < left:
            deadline = time.monotonic() + patience
        left = now
    return left
