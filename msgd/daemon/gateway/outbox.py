"""The lines that wait for a client to read them."""

from __future__ import annotations

import socket
from collections import deque

_GATHERED = 64
"""Lines that one system call takes; Linux allows 1024."""


class Outbox:
    """Lines for one socket that does not block, in order; `bytes` is how much of them has not left yet."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._lines: deque[bytes] = deque()
        self._sent_of_first = 0
        self.bytes = 0

    def append(self, line: bytes) -> None:
        """Put a line behind the others."""
        self._lines.append(line)
        self.bytes += len(line)

    def flush(self) -> bool:
        """Send what the client takes now; whether it took anything.  OSError if the client is gone."""
        sent_any = False
        while self._lines:
            lines = [self._lines[number] for number in range(min(_GATHERED, len(self._lines)))]
            lines[0] = lines[0][self._sent_of_first :]
            try:
                self._drop(self._client.sendmsg(lines))
            except BlockingIOError:
                break
            sent_any = True
        return sent_any

    def cut(self) -> None:
        """Drop the lines that have not begun to leave."""
        first = [self._lines[0]] if self._sent_of_first else []
        self._lines = deque(first)
        self.bytes = sum(map(len, first)) - self._sent_of_first

    def _drop(self, sent: int) -> None:
        self.bytes -= sent
        sent += self._sent_of_first
        while self._lines and sent >= len(self._lines[0]):
            sent -= len(self._lines.popleft())
        self._sent_of_first = sent
