"""AF_UNIX stream connections, kept in a cache."""

from msgd.backends.stream.backend import StreamBackend as BACKEND

__all__ = ["BACKEND"]
