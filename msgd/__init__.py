# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd: messages between the processes of one machine, in Samba's formats, without a broker in the data path.

A name of the library is imported when it is asked for, as in `from msgd import Messaging`.  So a program that needs one
module alone, such as msgparm, imports no other.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from msgd._registry import VERSION as __version__

if TYPE_CHECKING:
    from msgd.config import Config
    from msgd.errors import (
        AlreadyDispatching,
        AlreadyRunning,
        BackendUnavailable,
        ConfigError,
        ContextClosed,
        ForkedContext,
        GatewayClosed,
        HandlerFailed,
        MalformedMessage,
        MessageTooLarge,
        MsgdError,
        NoHandler,
        NoSuchProcess,
        NotAcknowledged,
        NotAllowed,
        QueueFull,
        ReplyTimeout,
        TransportError,
        UnsafeDirectory,
    )
    from msgd.messaging import Messaging, Observer, Registration
    from msgd.presence import Process, RendezvousDirectory
    from msgd.results import Broadcast, SendStatus, Statistics, Survey
    from msgd.wire.header import Message
    from msgd.wire.message_types import MessageClass, MessageType
    from msgd.wire.server_id import ServerID

__all__ = [
    "AlreadyDispatching",
    "AlreadyRunning",
    "BackendUnavailable",
    "Broadcast",
    "Config",
    "ConfigError",
    "ContextClosed",
    "ForkedContext",
    "GatewayClosed",
    "HandlerFailed",
    "MalformedMessage",
    "Message",
    "MessageClass",
    "MessageTooLarge",
    "MessageType",
    "Messaging",
    "MsgdError",
    "NoHandler",
    "NoSuchProcess",
    "NotAcknowledged",
    "NotAllowed",
    "Observer",
    "Process",
    "QueueFull",
    "Registration",
    "RendezvousDirectory",
    "ReplyTimeout",
    "SendStatus",
    "ServerID",
    "Statistics",
    "Survey",
    "TransportError",
    "UnsafeDirectory",
    "__version__",
]

_MODULES = (
    "msgd.errors",
    "msgd.config",
    "msgd.wire.header",
    "msgd.wire.message_types",
    "msgd.wire.server_id",
    "msgd.results",
    "msgd.presence",
    "msgd.messaging",
)
"""Where the names are; each module imports those before it, but for few."""

if not TYPE_CHECKING:  # with it, a type checker would take any name for one of the library's

    def __getattr__(name: str) -> object:
        """Import a name of the library and keep it."""
        if name in __all__:
            for module in map(importlib.import_module, _MODULES):
                if hasattr(module, name):
                    globals()[name] = getattr(module, name)
                    return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
