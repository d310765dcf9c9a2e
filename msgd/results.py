# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What calls of the API return; no transport stands behind these."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from msgd.errors import MsgdError


class SendStatus(enum.Enum):
    """What became of a message that send() accepted."""

    SENT = "sent"
    """It is in the receiver's queue (the kernel's or the file's)."""
    QUEUED = "queued"
    """It waits in this process and leaves from dispatch, the event loop or close()."""
    MERGED = "merged"
    """An identical message is still pending, and duplicates_allowed was False."""


class Broadcast(int):
    """The number of processes that took a broadcast; `failures` says by pid why each of the others did not."""

    failures: Mapping[int, MsgdError]

    def __new__(cls, delivered: int, failures: Mapping[int, MsgdError]) -> Self:
        """Make the result; immutable as any int."""
        self = super().__new__(cls, delivered)
        self.failures = failures
        return self


@dataclass(frozen=True, slots=True)
class Statistics:
    """What an endpoint has done since it was opened, and what waits in it.

    sent, received: messages; sent_bytes, received_bytes: their data.  queued_messages, queued_bytes: accepted and not
    yet taken by the receiver, for blocked_destinations processes.  drops: messages given up, by reason.
    """

    sent: int
    sent_bytes: int
    received: int
    received_bytes: int
    queued_messages: int
    queued_bytes: int
    blocked_destinations: int
    handler_errors: int
    drops: Mapping[str, int]
