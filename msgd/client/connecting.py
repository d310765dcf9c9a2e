# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How the gateway's clients, of asyncio or not, reach its socket."""

from __future__ import annotations

import errno
import socket
import time

from msgd.config import Config
from msgd.errors import GatewayClosed
from msgd.linux import set_send_timeout

TIMEOUT = 30.0
"""Seconds that a client waits for the gateway by default."""

_SHORTEST_WAIT = 1e-3
"""Seconds; the kernel takes a send timeout of 0 for no timeout at all."""


def gateway_path(path: str | None) -> str:
    """Where the gateway listens: `path`, else the configured path.

    Raises GatewayClosed if there is to be no gateway.
    """
    path = Config.load().listen if path is None else path
    if not path:
        raise GatewayClosed("there is no gateway: msgd:listen is empty")
    return path


def no_gateway(path: str, error: OSError) -> GatewayClosed:
    """The error for a gateway that cannot be reached."""
    if error.errno == errno.EAGAIN:
        return GatewayClosed(f"{path}: the queue of clients that wait to be accepted stayed full")
    hint = "; is msgd running?" if error.errno in (errno.ENOENT, errno.ECONNREFUSED) else ""
    return GatewayClosed(f"{path}: {error.strerror}{hint}")


def connect(path: str, timeout: float) -> socket.socket:
    """A non-blocking socket that is connected to the gateway.

    OSError if nobody listens, or if the listening socket's queue stays full for `timeout` seconds.

    While that queue is full, a non-blocking connect() fails at once, which asyncio takes for success; Python does so
    too when a signal interrupts a connect().  So this one blocks, and asks the kernel whether the socket is connected.
    """
    deadline = time.monotonic() + timeout
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.setblocking(timeout > 0)
        while not _is_connected(connected):
            left = max(_SHORTEST_WAIT, deadline - time.monotonic())
            set_send_timeout(connected, left)
            connected.connect(path)
        connected.setblocking(False)
    except BaseException:
        connected.close()
        raise
    return connected


def _is_connected(one: socket.socket) -> bool:
    try:
        one.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True
