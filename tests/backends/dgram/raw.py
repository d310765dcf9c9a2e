# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Hand-made datagrams: those of a process that is not msgd, or is hostile."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from msgd import Config, Messaging, ServerID
from msgd.wire.dgram import FRAGMENT
from msgd.wire.header import pack_header
from tests.support.harness import TEXT, Session

WHOLE = bytes(8)


class RawSender:
    """A datagram socket connected to a process's endpoint."""

    def __init__(self, config: Config, pid: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.connect(str(Path(config.socket_directory, str(pid))))

    def send(self, datagram: bytes, fds: Sequence[int] = ()) -> None:
        """Send the datagram unchanged."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([datagram], rights)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def whole(dst: ServerID, data: bytes, src: ServerID | None = None, message_type: int = TEXT) -> bytes:
    """The datagram of a whole message, from this process or with the claimed source `src`."""
    return WHOLE + pack_header(dst, src or ServerID(os.getpid()), message_type) + data


def piece(cookie: int, total: int, data: bytes, *, pid: int | None = None, number: int = 3) -> bytes:
    """The datagram of a fragment."""
    return FRAGMENT.pack(cookie, total, os.getpid() if pid is None else pid, number) + data


def honest(messaging: Messaging, received: list[bytes], text: bytes = b"honest") -> None:
    """Send a valid message, and fail unless it is the next one received."""
    before = len(received)
    messaging.send(messaging.server_id, TEXT, text)
    while len(received) == before:
        messaging.dispatch(None)
    assert received[before:] == [text]


def read_short_datagrams_only(session: Session) -> None:
    """Be like a process of Samba's: say nothing of long datagrams in the lock file."""
    presence = session.messaging._endpoint.presence
    presence.longest_datagram = 0
    presence._lock_file.write(presence.unique_id, presence._lines)


def dropped(messaging: Messaging) -> int:
    """The number of messages dropped so far."""
    return sum(messaging.statistics().drops.values())
