# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Books: what a process of a storm has sent to each other, and what it has heard.

A sender numbers its messages to each destination from 0, and counts only what send() has accepted.  So what a receiver
hears of one source is 0, 1, 2 ... without a hole and without a repetition; of a source that was killed the end may be
missing.  Each message names the process that it is meant for, and all of its bytes follow from its number: a message
for an earlier process of the same pid, or one that is mixed up with another, is seen.
"""

from __future__ import annotations

import struct
from collections import Counter

from msgd import Message, ServerID

HEAD = struct.Struct("=QQ")
"""The number, and the unique id of the process that the message is meant for."""


def text(number: int, dst: ServerID) -> bytes:
    """The message with this number: mostly short, every hundredth long, every thousandth very long."""
    if number % 1000 == 999:
        size = 200_000
    elif number % 100 == 50:
        size = 12_000
    else:
        size = number * 31 % 200
    return HEAD.pack(number, dst.unique_id) + bytes((number % 251,)) * size


class Books:
    """Of the process `own`.  `faults` has a line for each message that is not the one that is due."""

    def __init__(self, own: ServerID) -> None:
        self.own = own
        self.sent: Counter[ServerID] = Counter()
        self.heard: Counter[ServerID] = Counter()
        self.faults: list[str] = []

    def note(self, message: Message) -> None:
        """Take a message that has come."""
        number, meant_for = HEAD.unpack_from(message.data)
        due = self.heard[message.src]
        if meant_for != self.own.unique_id:
            self.faults.append(f"{message.src} to {self.own}: a message for the unique id {meant_for}")
        elif number != due:
            what = "a message again or out of order" if number < due else "messages are missing"
            self.faults.append(f"{message.src} to {self.own}: {what}, {number} instead of {due}")
        elif message.data != text(number, self.own):
            self.faults.append(f"{message.src} to {self.own}: message {number} has other bytes than were sent")
        self.heard[message.src] = number + 1
