# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Streams written by hand, as a broken or hostile process would write them."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from msgd import Config, Messaging, ServerID
from msgd.wire.stream import Hello, pack_frame
from tests.support.harness import TEXT, Channel, Child, dispatch_until

_CONNECTED = "03"
"""The state in /proc/net/unix; a connection in the backlog is still "02"."""

HELLO = Hello(unique_id=7, number=1).pack()


class RawConnection:
    """A stream socket connected to a process's endpoint."""

    def __init__(self, config: Config, pid: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(Path(config.socket_directory, str(pid))))

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Write data, the descriptors with its first byte; no error if the other side ends the connection first."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(ConnectionError):
            sent = self.socket.sendmsg([data], rights)
            self.socket.sendall(data[sent:])

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def is_ended(self) -> bool:
        """Wait for the end of the other side's stream; whether the stream was empty."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True


def frame(dst: ServerID, data: bytes, *, src: int | None = None, message_type: int = TEXT, fds: int = 0) -> bytes:
    """The frame of a message from this process, or from the pid `src` that it claims to come from."""
    return pack_frame(dst, ServerID(os.getpid() if src is None else src), message_type, len(data), fds) + data


def stranger(config: Config, dst: ServerID, body: Callable[[RawConnection, Channel], None]) -> Child:
    """A process with one raw connection, which stays open until the process ends."""

    def run(channel: Channel) -> None:
        connection = RawConnection(config, dst.pid)
        body(connection, channel)
        channel.send("done")
        with contextlib.suppress(EOFError):
            channel.recv()

    return Child(run)


def says(*pieces: bytes) -> Callable[[RawConnection, Channel], None]:
    """A body for stranger() that writes these pieces."""

    def body(connection: RawConnection, channel: Channel) -> None:
        for piece in pieces:
            connection.send(piece)

    return body


def collect(messaging: Messaging) -> list[bytes]:
    """A list that receives the data of each message of type TEXT from now on."""
    received: list[bytes] = []
    messaging.register(TEXT, lambda message: received.append(message.data))
    return received


def dropped(messaging: Messaging) -> int:
    """The number of messages dropped so far."""
    return sum(messaging.statistics().drops.values())


def dispatch_until_dropped(messaging: Messaging, number: int) -> None:
    """Dispatch until that many messages have been dropped, and fail if there are more."""
    dispatch_until(messaging, lambda: dropped(messaging) >= number)
    assert dropped(messaging) == number, messaging.statistics().drops


def sockets() -> int:
    """The number of sockets that this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


def accepted(config: Config) -> int:
    """The number of connections to this process's endpoint that have been accepted and are open."""
    path = str(Path(config.socket_directory, str(os.getpid())))
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return sum(one[-1] == path and one[5] == _CONNECTED for one in sockets)
