# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Questions to ctdbd for which the caller waits: which nodes there are, and whether a process is registered.

Each question has a connection of its own.  So any thread asks without the endpoint's lock, a program without an
endpoint can ask, too, and no message waits behind a question to a node that hangs.
"""

from __future__ import annotations

import contextlib
import select
import time

from msgd.cluster.connection import Connection
from msgd.cluster.places import ctdbd_socket, reason, timeout_of
from msgd.config import Config
from msgd.errors import MalformedMessage, NoSuchProcess, TransportError
from msgd.linux import new_poll
from msgd.wire.ctdb import (
    CURRENT_NODE,
    Node,
    Opcode,
    Reply,
    pack_control,
    pack_pid_srvid,
    unpack_nodes,
)
from msgd.wire.server_id import ANY_UNIQUE_ID, ServerID

_REPLY_MAX = 1 << 20
_REQUEST_ID = 1


def own_number(config: Config) -> int:
    """The number of this node.  Raises TransportError."""
    return _ask(config, Opcode.GET_PNN).status


def nodes(config: Config) -> tuple[Node, ...]:
    """The nodes of the cluster, as this node's ctdbd sees them.  Raises TransportError."""
    try:
        return unpack_nodes(_ask(config, Opcode.GET_NODEMAP).data)
    except MalformedMessage as error:
        raise TransportError(f"asking ctdbd at {ctdbd_socket(config)}: {error}") from error


def is_registered(config: Config, dst: ServerID) -> bool:
    """Whether the process addressed is registered at its node's ctdbd: it lives, as far as ctdb knows.

    Raises NoSuchProcess if its node cannot be asked because it is not connected, TransportError.
    """
    reply = _ask(config, Opcode.CHECK_PID_SRVID, pack_pid_srvid(dst.pid, srvid_of(dst)), dst.vnn)
    if reply.error:
        raise NoSuchProcess(f"no process {dst}: node {dst.vnn} cannot be asked: {reply.error}")
    return reply.status == 0


def srvid_of(dst: ServerID) -> int:
    """The srvid that the process addressed, and no later one with its pid, has registered."""
    return dst.pid if dst.unique_id in ANY_UNIQUE_ID else dst.unique_id


def _ask(config: Config, opcode: Opcode, data: bytes = b"", node: int = CURRENT_NODE) -> Reply:
    deadline = time.monotonic() + timeout_of(config)
    path = ctdbd_socket(config)
    try:
        with contextlib.closing(Connection(path, _REPLY_MAX)) as connection:
            connection.send(pack_control(_REQUEST_ID, opcode, data, node=node))
            while (left := deadline - time.monotonic()) > 0:
                poll = new_poll()
                poll.register(connection.fileno(), select.POLLIN | (select.POLLOUT if connection.waiting else 0))
                poll.poll(left * 1000)
                connection.flush()
                with contextlib.suppress(BlockingIOError):
                    for packet in connection.receive():
                        if isinstance(packet, Reply) and packet.request_id == _REQUEST_ID:
                            return packet
    except (OSError, EOFError, MalformedMessage) as error:
        raise TransportError(f"asking ctdbd at {path}: {reason(error)}") from error
    raise TransportError(f"asking ctdbd at {path}: no answer within {timeout_of(config):g} seconds (ctdb timeout)")
