# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The general messaging code: what a program imports to talk to other processes.

context.py is the API; handlers.py finds the handlers of a message; endpoint.py is this process's place in a directory,
shared by its contexts; loading.py finds the transport.
"""

from msgd.messaging.context import REPLY_TIMEOUT, Destination, Messaging
from msgd.messaging.handlers import Handler, about
from msgd.messaging.loading import backend_class

__all__ = ["REPLY_TIMEOUT", "Destination", "Handler", "Messaging", "about", "backend_class"]
