# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd: messages between the processes of one machine, in Samba's formats, without a broker in the data path."""

from msgd._registry import VERSION as __version__
from msgd.config import Config
from msgd.errors import (
    AlreadyRunning,
    BackendUnavailable,
    ConfigError,
    ContextClosed,
    ForkedContext,
    GatewayClosed,
    MalformedMessage,
    MessageTooLarge,
    MsgdError,
    NoSuchProcess,
    NotAllowed,
    QueueFull,
    ReplyTimeout,
    TransportError,
    UnsafeDirectory,
)
from msgd.messaging import Messaging
from msgd.presence import Process, RendezvousDirectory
from msgd.results import Broadcast, SendStatus, Statistics
from msgd.wire.header import Message
from msgd.wire.message_types import MessageClass, MessageType
from msgd.wire.server_id import ServerID

__all__ = [
    "AlreadyRunning",
    "BackendUnavailable",
    "Broadcast",
    "Config",
    "ConfigError",
    "ContextClosed",
    "ForkedContext",
    "GatewayClosed",
    "MalformedMessage",
    "Message",
    "MessageClass",
    "MessageTooLarge",
    "MessageType",
    "Messaging",
    "MsgdError",
    "NoSuchProcess",
    "NotAllowed",
    "Process",
    "QueueFull",
    "RendezvousDirectory",
    "ReplyTimeout",
    "SendStatus",
    "ServerID",
    "Statistics",
    "TransportError",
    "UnsafeDirectory",
    "__version__",
]
