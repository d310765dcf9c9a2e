# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The client's side of the gateway's protocol, without I/O: request lines out, replies in.

The owner of the socket calls ask() and sends the line, calls feed() with the bytes it reads (b"" at the end of the
stream), then checks whether take() returns the answer and whether `events` or `news` has grown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from msgd.errors import GatewayClosed, MalformedMessage, MessageTooLarge, MsgdError, QueueFull
from msgd.wire.gateway.json_lines import LineReader
from msgd.wire.gateway.limits import MAX_EVENTS, MAX_LINE
from msgd.wire.gateway.members import Members, write_data
from msgd.wire.gateway.replies import Answer, Bye, Event, Missed, Published, Refusal, last_word, read_reply
from msgd.wire.gateway.requests import write_request
from msgd.wire.header import Message


class Conversation:
    """The requests and replies of one connection."""

    def __init__(self) -> None:
        self.events: deque[Message] = deque()
        """Received messages, oldest first; the owner takes them out."""
        self.news: deque[Published | Missed] = deque()
        """Publications to the topics of this client, and what it may have missed; the owner takes them out, too."""
        self.ended: MsgdError | None = None
        """Once the connection has ended: the reason."""
        self._line_bytes = self._message_bytes = MAX_LINE
        self._lines = LineReader(MAX_LINE)
        self._last_tag = 0
        self._replies: dict[int, Answer | Refusal | None] = {}

    def keep_to(self, limits: object) -> None:
        """Apply the limits in the gateway's answer to hello to later requests.  May raise MalformedMessage."""
        if not isinstance(limits, dict):
            raise MalformedMessage("the gateway's answer to hello holds no limits")
        members = Members(dict(limits))
        self._line_bytes = members.take_number("line_bytes", 1, MAX_LINE)
        self._message_bytes = members.take_number("message_bytes", 1, MAX_LINE)

    def ask(
        self, op: str, data: bytes = b"", published: Mapping[str, object] | None = None, /, **members: object
    ) -> tuple[int, bytes]:
        """A new request: its id, and its line.  `published` is there instead of the data of a message, as members.

        Raises the error that ended the connection, QueueFull while MAX_EVENTS messages wait to be taken, or
        MessageTooLarge for a request that the gateway would refuse or end the connection for.
        """
        if self.ended is not None:
            raise self.ended
        if (waiting := len(self.events) + len(self.news)) >= MAX_EVENTS:
            raise QueueFull(f"{waiting} messages wait to be received")
        if len(data) > self._message_bytes:
            raise MessageTooLarge(f"{len(data)} bytes of data; msgd:max message size is {self._message_bytes} there")
        tag = self._last_tag + 1
        line = write_request(op, tag, write_data(data) if published is None else published, **members)
        length = len(line) - len(b"\n")
        if length > self._line_bytes:
            what = f"{len(data)} bytes of data make" if published is None else "it makes"
            raise MessageTooLarge(f"{what} a line of {length}; msgd:client line bytes is {self._line_bytes} there")
        self._last_tag = tag
        self._replies[tag] = None
        return tag, line

    def feed(self, data: bytes) -> None:
        """Process bytes that were read.  A malformed line ends the connection."""
        if not data and self.ended is None:
            self.ended = GatewayClosed("the gateway has closed the connection")
        self._lines.feed(data)
        try:
            while self.ended is None and (line := self._lines.next_line()) is not None:
                self._note(line)
        except MalformedMessage as error:
            self.ended = error

    def take(self, tag: int) -> Mapping[str, object] | None:
        """The answer to a request; None if it has not come yet.

        Raises the error that the request was refused with, or the error that ended the connection before the answer.
        """
        reply = self._replies[tag]
        if reply is None and self.ended is None:
            return None
        del self._replies[tag]
        if isinstance(reply, Answer):
            return reply.members
        if isinstance(reply, Refusal):
            raise reply.error
        assert self.ended is not None
        raise self.ended

    def forget(self, tag: int) -> None:
        """Stop waiting for the answer: it is ignored when it comes."""
        self._replies.pop(tag, None)

    def cancel(self, tag: int) -> bytes:
        """Stop waiting for the answer to a call: the line that tells the gateway so, or nothing if it has answered.

        It can always be sent, however many messages wait: it makes room at the gateway.
        """
        if tag not in self._replies or self._replies[tag] is not None or self.ended is not None:
            return b""
        return write_request("cancel", call=tag)

    def _note(self, line: bytes) -> None:
        reply = read_reply(line)
        if isinstance(reply, Event):
            self.events.append(reply.message)
        elif isinstance(reply, Published | Missed):
            self.news.append(reply)
        elif isinstance(reply, Bye):
            self.ended = last_word(reply)
        elif isinstance(reply.tag, int) and reply.tag in self._replies:
            self._replies[reply.tag] = reply
