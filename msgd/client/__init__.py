# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The gateway's client, for processes that cannot have an endpoint of their own."""

from msgd.client.client import Client

__all__ = ["Client"]
