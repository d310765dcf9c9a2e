"""Who is here: the rendezvous directories, lock files, unique ids, liveness, names, and the clean-up of the dead."""

from msgd.presence.directory import RendezvousDirectory
from msgd.presence.lock_text import Process
from msgd.presence.membership import Presence

__all__ = ["Presence", "Process", "RendezvousDirectory"]
