"""Records in messages.tdb, and SIGUSR1 to a receiver that sleeps."""

from msgd.backends.tdb.backend import TdbBackend as BACKEND

__all__ = ["BACKEND"]
