# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A worker of the demo: a program that uses the library.

Usage: python -m msgd.tools.demo.worker SMB.CONF

The worker prints `ready` on stdout once it can receive messages.  It exits on SHUTDOWN, and at the end of its stdin, so
that it does not outlive the demo.
"""

from __future__ import annotations

import json
import select
import sys

from msgd.config import Config
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.message_types import TMP_BASE, MessageType

ECHO = TMP_BASE + 1
"""The worker answers with ECHOED and the same data."""
ECHOED = TMP_BASE + 2
SLEEP = TMP_BASE + 3
"""The worker prints `asleep` on stdout and reads no message until it gets a line on its stdin."""
BURST = TMP_BASE + 4
"""The data is a decimal number, which the worker stores."""
REPORT = TMP_BASE + 5
"""The worker answers with REPORTED: the numbers stored, in the order in which they arrived, as JSON."""
REPORTED = TMP_BASE + 6


class Worker:
    """The message handlers, and the numbers that they have stored."""

    def __init__(self, messaging: Messaging) -> None:
        self._messaging = messaging
        self._numbers: list[int] = []
        self._stopping = False
        messaging.register(ECHO, self._echo)
        messaging.register(SLEEP, self._sleep)
        messaging.register(BURST, lambda message: self._numbers.append(int(message.data)))
        messaging.register(REPORT, self._report)
        messaging.register(MessageType.SHUTDOWN, self._stop)

    def run(self) -> None:
        """Handle messages until SHUTDOWN or the end of stdin."""
        poll = select.poll()
        poll.register(self._messaging.fileno(), select.POLLIN)
        poll.register(sys.stdin.fileno(), select.POLLIN)
        print("ready", flush=True)
        while not self._stopping:
            ready = [fd for fd, _ in poll.poll()]
            self._messaging.dispatch()
            self._stopping = self._stopping or sys.stdin.fileno() in ready

    def _echo(self, message: Message) -> None:
        self._messaging.reply(message, ECHOED, message.data)

    def _sleep(self, message: Message) -> None:
        print("asleep", flush=True)
        self._stopping = not sys.stdin.readline()

    def _report(self, message: Message) -> None:
        self._messaging.reply(message, REPORTED, json.dumps(self._numbers).encode())

    def _stop(self, message: Message) -> None:
        self._stopping = True


if __name__ == "__main__":
    with Messaging(Config.load(sys.argv[1])) as messaging:
        Worker(messaging).run()
