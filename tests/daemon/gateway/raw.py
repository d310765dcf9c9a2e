# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A client that says whatever a test wants, line by line or byte by byte."""

from __future__ import annotations

import json
import socket
from types import TracebackType
from typing import Any, Self

from tests.support.daemons import PATIENCE, Place

Object = dict[str, Any]


class RawClient:
    """A connection to a place's gateway."""

    def __init__(self, place: Place) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(place.gateway)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def say(self, **members: object) -> None:
        self.write(json.dumps(members).encode() + b"\n")

    def read(self) -> Object:
        """The next line."""
        line = self._file.readline()
        assert line.endswith(b"\n"), f"it ended with {line!r}"
        read: Object = json.loads(line)
        return read

    def ask(self, **members: object) -> Object:
        """What is said next after this."""
        self.say(**members)
        return self.read()

    def is_ended(self) -> bool:
        """Whether the next thing that comes is the end of the stream."""
        try:
            return self._file.readline() == b""
        except ConnectionResetError:
            return True

    def finish(self) -> None:
        """Say that nothing more is asked."""
        self.socket.shutdown(socket.SHUT_WR)

    @property
    def pid(self) -> int:
        """The connection process's."""
        server_id: str = self.ask(op="hello")["server_id"]
        return int(server_id.partition("/")[0])
