"""The general messaging code: what a program imports to talk to other processes."""

from msgd.messaging.context import (
    REPLY_TIMEOUT,
    Broadcast,
    Destination,
    Handler,
    Messaging,
    Statistics,
    about,
    backend_class,
)

__all__ = [
    "REPLY_TIMEOUT",
    "Broadcast",
    "Destination",
    "Handler",
    "Messaging",
    "Statistics",
    "about",
    "backend_class",
]
