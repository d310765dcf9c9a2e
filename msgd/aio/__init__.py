# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The asyncio face of messaging: the same names as the synchronous ones."""

from msgd.aio.client import Client
from msgd.aio.context import AsyncMessaging
from msgd.aio.pubsub import PubSub

__all__ = ["AsyncMessaging", "Client", "PubSub"]
