# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The transport of Samba 3.0: records in messages.tdb, and SIGUSR1 to a receiver that sleeps."""

from msgd.backends.tdb.backend import TdbBackend as BACKEND

__all__ = ["BACKEND"]
