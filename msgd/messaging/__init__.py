# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The general messaging code: what a program imports to talk to other processes.

context.py is the API; handlers.py finds the handlers of a message; endpoint.py is this process's place in a directory,
shared by its contexts; loading.py finds the transport.
"""

from msgd.messaging.arguments import Data, Destination, Type
from msgd.messaging.context import Messaging
from msgd.messaging.handlers import Handler, about
from msgd.messaging.loading import backend_class
from msgd.messaging.observer import Observer
from msgd.messaging.registering import Registration
from msgd.messaging.requests import REPLY_TIMEOUT

__all__ = [
    "REPLY_TIMEOUT",
    "Data",
    "Destination",
    "Handler",
    "Messaging",
    "Observer",
    "Registration",
    "Type",
    "about",
    "backend_class",
]
