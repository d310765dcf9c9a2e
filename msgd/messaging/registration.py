# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What register() returns: a handle on one handler."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from msgd.messaging.handlers import Handler, HandlerTable


class Registration:
    """One registered handler; close() ends it, and so does leaving it as a context manager."""

    def __init__(self, table: HandlerTable, lock: threading.RLock, message_type: int, handler: Handler) -> None:
        self._table = table
        self._lock = lock
        self._is_closed = False
        self.message_type = message_type
        self.handler = handler

    def close(self) -> None:
        """Call the handler no more.  A second call does nothing."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._table.remove_one(self.message_type, self.handler)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
