"""Who is here: the rendezvous directories, lock files, unique ids, liveness, names, and the clean-up of the dead."""

from msgd.presence.lock_text import Process
from msgd.presence.presence import Presence
from msgd.presence.rendezvous import RendezvousDirectory

__all__ = ["Presence", "Process", "RendezvousDirectory"]
