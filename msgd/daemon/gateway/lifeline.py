# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The lifeline: a pipe that tells connection processes that the service has been stopped for good.

Connection processes outlive a restart of the main process but not the service, and only the service manager knows
which of the two a stop is.  So the main process gives the write end of a pipe to the service manager, and the
connection processes watch the read end.  systemd keeps its end while the service restarts, however the main process
ended, and passes it to the next main process.  After a stop systemd closes it, and the connection processes read the
end of file.

If the service manager does not keep the descriptor (FileDescriptorStoreMax= is 0), the main process is the only holder
and its connection processes end with it.  Without a service manager there is no lifeline.
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
        """The lifeline that `manager` has kept, else a new one for it to keep; None if it keeps no descriptors."""
        if not manager.keeps_descriptors:
            return None
        held = manager.kept.get(_NAME)
        if held is not None:
            return cls(os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_CLOEXEC), held)
        watched, held = os.pipe2(os.O_CLOEXEC)
        manager.keep(_NAME, held)
        return cls(watched, held)

    def abandon(self) -> None:
        """In a forked child: keep the end to watch, close the end that holds the pipe open."""
        os.close(self._held)

    def close(self) -> None:
        """Close both ends."""
        os.close(self.watched)
        os.close(self._held)
