# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Observing what goes through an endpoint: for metrics, tracing and tests.

An endpoint without an observer pays one comparison for each message sent and received.  The calls come in the thread
that sends or dispatches; what they raise comes out of send() and dispatch(), so they should not.
"""

from __future__ import annotations

from msgd.wire.header import Message


class Observer:
    """Does nothing; override what is of interest, and give it to Messaging(observer=...)."""

    def sent(self, message_type: int, length: int) -> None:
        """A message with so many bytes of data was sent, or queued."""

    def received(self, message: Message) -> None:
        """A message has come that somebody here handles or waits for; its handlers run next."""

    def handled(self, message: Message, seconds: float) -> None:
        """One of its handlers has run, for so long."""

    def dropped(self, reason: str, number: int) -> None:
        """So many messages were given up, for one of the reasons in docs/errors-and-log.md."""

    def dispatched(self) -> None:
        """A round of dispatch has ended."""
