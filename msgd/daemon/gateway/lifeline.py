"""The lifeline: a pipe by which connection processes learn that the service is stopped for good.

Connection processes are to outlive a restart of the main process, but not the service.  Only the service manager
knows which of the two a stop is.  So the main process gives it the write end of a pipe to keep, and the connection
processes watch the read end.  systemd keeps it while the service is restarted, whatever has ended the main process,
and gives it to the next one; after a stop it closes it, and the connection processes see the end of the pipe.

A service manager that was asked to keep it and did not (FileDescriptorStoreMax= is 0) makes the main process the only
holder: its connection processes end with it.  Without a service manager there is no lifeline.
"""

from __future__ import annotations

import os
from typing import Self

from msgd.daemon.service_manager import ServiceManager

_NAME = "lifeline"


class Lifeline:
    """Both ends of the pipe, in the main process."""

    def __init__(self, watched: int, held: int) -> None:
        self.watched = watched
        """The end that connection processes watch."""
        self._held = held

    @classmethod
    def of(cls, manager: ServiceManager) -> Self | None:
        """The lifeline that `manager` has kept, else a new one that it is to keep; None if it cannot."""
        if not manager.keeps_descriptors:
            return None
        held = manager.kept.get(_NAME)
        if held is not None:
            return cls(os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_CLOEXEC), held)
        watched, held = os.pipe2(os.O_CLOEXEC)
        manager.keep(_NAME, held)
        return cls(watched, held)

    def abandon(self) -> None:
        """In a forked child: watch it, and do not hold it."""
        os.close(self._held)

    def close(self) -> None:
        """Let go of both ends."""
        os.close(self.watched)
        os.close(self._held)
