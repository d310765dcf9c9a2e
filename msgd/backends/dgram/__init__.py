# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The dgram transport: AF_UNIX datagrams, byte for byte those of Samba 4.2 and later."""

from msgd.backends.dgram.backend import DgramBackend as BACKEND

__all__ = ["BACKEND"]
