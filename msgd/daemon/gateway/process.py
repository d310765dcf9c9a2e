# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The connection process: one client, one messaging context, one loop, from fork to exit.

Three parties that are not the client may end it: the main process (SIGTERM), a SHUTDOWN message, and the service
manager, by closing the lifeline.
"""

from __future__ import annotations

import contextlib
import logging
import socket

from msgd.daemon.children import LetIn
from msgd.daemon.gateway.connection import Connection
from msgd.daemon.gateway.memory import limit_memory
from msgd.daemon.gateway.peer import Peer
from msgd.daemon.loop import Loop
from msgd.daemon.metrics.counters import Counters
from msgd.daemon.metrics.metered import open_messaging
from msgd.daemon.settings import Settings
from msgd.daemon.shared_pace import Told
from msgd.errors import MsgdError
from msgd.events import CONNECTED, CONNECTION_FAILED, DISCONNECTED, and_others, fields
from msgd.messaging import Messaging
from msgd.wire.gateway.replies import FAILED, write_bye

logger = logging.getLogger("msgd.daemon")

_NAME = "msgd-connection-"
"""The name of connection processes, followed by the uid they serve.  The next main process finds them by it."""

_OUT_OF_MEMORY = write_bye(FAILED, "the connection process has used up msgd:client memory")
"""Written in advance: there is no memory for it when it is needed."""


def serve(
    client: socket.socket,
    peer: Peer,
    settings: Settings,
    memory: int,
    lifeline: int | None,
    counters: Counters | None,
    has_started: LetIn,
) -> int:
    """Be the connection process of a client to its end.  Returns the exit status.

    `memory` is its limit at first, in bytes.  `lifeline` is the pipe whose end of file ends this process; None if there
    is none.  `counters` is where it counts its messages, if it does.  `has_started` is called once signals can be
    handled, and unblocks them.
    """
    about_it = peer.fields
    with client:
        try:
            limit_memory(memory)
            client.setblocking(False)
            with Loop() as loop, open_messaging(settings.config, counters) as messaging:
                _add_name(messaging, peer.uid)
                logger.info("%s is connected", peer, extra=fields(CONNECTED, **about_it))
                why = Connection(client, peer, settings, loop, messaging).run(lifeline, has_started)
            logger.info("%s is disconnected: %s", peer, why, extra=fields(DISCONNECTED, **about_it))
        except MemoryError:
            _try_to_send(client, _OUT_OF_MEMORY)
            _log_failure(settings, peer, "it has used up msgd:client memory")
            return 1
        except (MsgdError, OSError) as error:
            _try_to_send(client, write_bye(FAILED, str(error)))
            _log_failure(settings, peer, str(error))
            return 1
    return 0


def _log_failure(settings: Settings, peer: Peer, why: str) -> None:
    if number := settings.pace.due(Told.CONNECTION_FAILED, peer.uid):
        about_it = fields(CONNECTION_FAILED, **peer.fields, NUMBER=number)
        logger.error("the connection of %s: %s%s", peer, why, and_others(number), extra=about_it)


def uid_served(name: str) -> int | None:
    """The uid that the connection processes of this name serve; None if it is another kind of name."""
    uid = name.removeprefix(_NAME)
    return int(uid) if uid != name and uid.isdecimal() else None


def _add_name(messaging: Messaging, uid: int) -> None:
    try:
        messaging.add_name(f"{_NAME}{uid}")
    except MsgdError as error:  # only the next main process would miss it
        logger.error("%s; this connection process goes on without a name", error)


def _try_to_send(client: socket.socket, line: bytes) -> None:
    with contextlib.suppress(OSError):  # the client is gone, or has not read what came before
        client.send(line)
