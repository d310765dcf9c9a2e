# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The threads of a hub in a program without an event loop: one dispatches, and one looks for what is overdue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from msgd.errors import ContextClosed, MsgdError
from msgd.messaging.context import Messaging

logger = logging.getLogger("msgd")

_GRACE = 1.0
"""Seconds that a fork waits for the callback that is running in the thread that dispatches."""


class Background:
    """The threads, which run from construction to stop(); `tick` is called every `interval` seconds.

    The messaging context dispatches in a thread of its own already.
    """

    def __init__(self, messaging: Messaging, tick: Callable[[], None], interval: float) -> None:
        self._messaging = messaging
        self._tick = tick
        self._interval = interval
        self._begin_ticking()

    def _begin_ticking(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="msgd-pubsub", daemon=True)
        self._thread.start()

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.wait(self._interval):
            try:
                self._tick()
            except ContextClosed:
                return
            except MsgdError as error:
                logger.error("looking for publications that have not come: %s", error)

    def stop(self) -> None:
        """End both threads, and wait for that; from within one of them, that one ends when it returns."""
        self._stopping.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        try:
            self._messaging.stop(_GRACE)
        except ContextClosed:
            return  # and its thread has ended with it

    def start(self) -> None:
        """Begin again after stop()."""
        try:
            self._messaging.start()
        except ContextClosed:
            return  # another thread has closed it meanwhile
        self._begin_ticking()
