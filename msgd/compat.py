# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The messaging API by its names of 2006: message_init ... message_end.

As then, the module keeps one context for the process.  Functions return what theirs did (True for success), and the
reason of a failure is logged; message_send_pid to a process that is gone is False, not an exception.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgd.config import Config
from msgd.errors import ContextClosed, MsgdError
from msgd.messaging import Handler, Messaging
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

logger = logging.getLogger("msgd")

DispatchFunction = Callable[[int, ServerID, bytes, Any], None]
"""Called with message type, source, data, and the private data it was registered with."""


@dataclass
class _Process:
    """What the functions below share: this process's context and its registrations."""

    context: Messaging | None = None
    handlers: dict[tuple[int, int], Handler] = field(default_factory=dict)


_process = _Process()


def message_init(config: Config | None = None) -> bool:
    """Set up messaging for this process, from smb.conf unless a configuration is given; a second call does nothing.

    After fork() the child calls it to get an identity of its own.
    """
    try:
        if _process.context is None:
            _process.context = Messaging(config)
        else:
            _process.context.reinit()
    except MsgdError as error:
        logger.error("message_init: %s", error)
        return False
    return True


def message_end() -> None:
    """Take down messaging for this process, sending on what is queued first."""
    if _process.context is not None:
        _process.context.close()
        _process.context = None
        _process.handlers.clear()


def message_register(msg_type: int, fn: DispatchFunction, private_data: Any = None) -> None:
    """Call fn(msg_type, src, data, private_data) for each message of the type.

    Raises ContextClosed before message_init().
    """

    def handler(message: Message) -> None:
        fn(message.type, message.src, message.data, private_data)

    message_deregister(msg_type, private_data)
    _context().register(msg_type, handler)
    _process.handlers[msg_type, id(private_data)] = handler


def message_deregister(msg_type: int, private_data: Any = None) -> None:
    """Undo the registration of the type with this private data."""
    handler = _process.handlers.pop((msg_type, id(private_data)), None)
    if handler is not None:
        _context().deregister(msg_type, handler)


def message_send_pid(pid: ServerID | int, msg_type: int, data: bytes = b"", duplicates_allowed: bool = True) -> bool:
    """Send to a process.  Returns False if it is gone or its queue is full."""
    return message_send_pid_with_timeout(pid, msg_type, data, duplicates_allowed, 0)


def message_send_pid_with_timeout(
    pid: ServerID | int, msg_type: int, data: bytes, duplicates_allowed: bool, timeout: float
) -> bool:
    """As message_send_pid, waiting at most `timeout` seconds for room in its queue."""
    try:
        _context().send(pid, msg_type, data, duplicates_allowed=duplicates_allowed, timeout=timeout)
    except ContextClosed:
        raise
    except MsgdError as error:
        logger.info("message_send_pid: %s", error)
        return False
    return True


def message_send_all(msg_type: int, data: bytes = b"", duplicates_allowed: bool = True) -> int:
    """Send to every other process.  Returns how many took it."""
    return _context().send_all(msg_type, data, duplicates_allowed=duplicates_allowed).delivered


def messages_pending_for_pid(pid: ServerID | int) -> int:
    """The number of messages that wait for a process."""
    return _context().pending(pid)


def message_dispatch() -> int:
    """Run the handlers of what has come in.  Returns the number of messages handled."""
    return _context().dispatch()


def _context() -> Messaging:
    if _process.context is None:
        raise ContextClosed("messaging is not set up in this process; call message_init() first")
    return _process.context
