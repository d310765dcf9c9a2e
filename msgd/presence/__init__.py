"""Who is here: the rendezvous directories, lock files, unique ids, liveness, and the clean-up of the dead."""

from msgd.presence.presence import Presence
from msgd.presence.processes import Process

__all__ = ["Presence", "Process"]
