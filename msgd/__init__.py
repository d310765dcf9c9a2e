# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd: messages between the processes of one machine, in Samba's formats, without a broker in the data path."""

from msgd._registry import VERSION as __version__
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
