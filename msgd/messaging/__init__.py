# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The general messaging code: what a program imports to talk to other processes."""

from msgd.messaging.context import (
    REPLY_TIMEOUT,
    Destination,
    Handler,
    Messaging,
    about,
    backend_class,
)

__all__ = [
    "REPLY_TIMEOUT",
    "Destination",
    "Handler",
    "Messaging",
    "about",
    "backend_class",
]
