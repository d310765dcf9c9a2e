# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The lines that wait for a client to read them: its backlog."""

from __future__ import annotations

import errno
import socket
from collections import deque

_GATHERED = 64
"""Lines that one system call sends; Linux allows 1024."""


class Outbox:
    """Lines for one non-blocking socket, in order.

    A line that takes the backlog over `max_bytes` makes the outbox try to send at once: what one turn of the loop
    brings may be much more than the client's share of memory.  Otherwise lines wait for flush().
    """

    def __init__(self, client: socket.socket, max_bytes: int) -> None:
        self._client = client
        self._lines: deque[bytes] = deque()
        self._sent_of_first = 0
        self.max_bytes = max_bytes
        self.sent = 0
        """Bytes that have left, in total."""
        self.bytes = 0
        """The size of the backlog: what has not left yet."""
        self.is_broken = False
        """Whether the client has closed the connection, so that nothing can leave."""

    @property
    def is_full(self) -> bool:
        """Whether the backlog is over its bound."""
        return self.bytes > self.max_bytes

    def append(self, line: bytes) -> None:
        """Put a line behind the others."""
        self._lines.append(line)
        self.bytes += len(line)
        if self.is_full:
            self.flush()

    def flush(self) -> None:
        """Send as much as the socket takes now.  OSError if it fails for another reason than the client's going."""
        while self._lines and not self.is_broken:
            lines = [self._lines[number] for number in range(min(_GATHERED, len(self._lines)))]
            lines[0] = lines[0][self._sent_of_first :]
            try:
                sent = self._client.sendmsg(lines)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    raise
                self.is_broken = True
            else:
                self._remove(sent)

    def cut(self) -> None:
        """Drop the lines that have not begun to leave."""
        first = [self._lines[0]] if self._sent_of_first else []
        self._lines = deque(first)
        self.bytes = sum(map(len, first)) - self._sent_of_first

    def _remove(self, sent: int) -> None:
        self.sent += sent
        self.bytes -= sent
        sent += self._sent_of_first
        while self._lines and sent >= len(self._lines[0]):
            sent -= len(self._lines.popleft())
        self._sent_of_first = sent
