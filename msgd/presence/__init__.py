# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Who is here: rendezvous directories, lock files, unique ids, liveness, names, and cleaning up after the dead."""

from msgd.presence.directory import RendezvousDirectory
from msgd.presence.lock_text import Process
from msgd.presence.membership import Presence

__all__ = ["Presence", "Process", "RendezvousDirectory"]
