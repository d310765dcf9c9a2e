# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The hubs of this process, one for each directory, and what becomes of them at fork and at exit.

Rule 1.  The first PubSub in a directory opens the hub, and the last one closes it.
Rule 2.  A fork finds every table whole: the hooks stop the threads and take the locks first.  In the parent they start
    again; so a server that forks its workers is no process with threads at that moment.
Rule 3.  A forked child has no hub.  Each PubSub notes how much the parent had handled, which is what the child's memory
    reflects, and compares when it opens the hub of its own.
Rule 4.  At exit the hubs are closed, which sends what is queued.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable

from msgd.config import Config
from msgd.errors import BackendUnavailable, MsgdError
from msgd.pubsub.hub import Face, Hub

logger = logging.getLogger("msgd")

lock = threading.RLock()
"""Guards the table of hubs, and what each face knows of its own.  It is taken before the locks of the hubs."""

_hubs: dict[str, Hub] = {}
"""By lock directory."""

_left_parent: weakref.WeakSet[Face] = weakref.WeakSet()
"""Those that were open in the parent of this process, when it was forked."""


def join(config: Config, face: Face) -> Hub:
    """This process's hub in the configured directory, opened if there is none; `face` is to leave it."""
    directory = os.path.realpath(config.lock_directory)
    with lock:
        hub = _hubs.get(directory)
        if hub is None:
            hub = _hubs[directory] = Hub(config)
        elif hub.config.messaging_type != config.messaging_type:
            raise BackendUnavailable(
                f"this process publishes in {directory} with messaging type {hub.config.messaging_type} already;"
                f" close that PubSub before using {config.messaging_type}"
            )
        hub.faces.append(face)
        return hub


def start_all() -> None:
    """In a forked child: open every PubSub that was open in the parent, so that its subscriptions hear.

    For servers that fork their workers after the application is loaded.  Elsewhere it does nothing.  Raises what
    PubSub.start() raises.
    """
    while _left_parent:
        _left_parent.pop().reopen()


def leave(hub: Hub, face: Face, timeout: float | None) -> int:
    """Take a face out; with the last one the hub closes.  Returns how many publications could not be delivered."""
    with lock:
        if face in hub.faces:
            hub.faces.remove(face)
        if hub.faces:
            return 0
        _forget(hub)
    return hub.close(timeout)


def _forget(hub: Hub) -> None:
    for directory in [directory for directory, one in _hubs.items() if one is hub]:
        del _hubs[directory]


class _ForkHooks:
    """Stops the threads and holds the locks over a fork; in the child, lets go of the parent's hubs."""

    def __init__(self) -> None:
        self._resuming: list[Callable[[], None]] = []
        self._held: list[Hub] = []

    def before(self) -> None:
        self._resuming = [hub.pause() for hub in tuple(_hubs.values())]
        lock.acquire()
        self._held = list(_hubs.values())
        for hub in self._held:
            hub.hold()

    def in_parent(self) -> None:
        while self._held:
            self._held.pop().let_go()
        lock.release()
        while self._resuming:
            self._resuming.pop()()

    def in_child(self) -> None:
        held, self._held, self._resuming = self._held, [], []
        _hubs.clear()
        for hub in held:
            hub.let_go()
            _left_parent.update(hub.faces)
            hub.abandon()
        lock.release()


_hooks = _ForkHooks()
os.register_at_fork(before=_hooks.before, after_in_parent=_hooks.in_parent, after_in_child=_hooks.in_child)


@atexit.register
def close_all() -> None:
    """Close every PubSub of this process, which sends what is queued.  It happens at exit, too.

    One that is used again opens again.
    """
    for hub in tuple(_hubs.values()):
        try:
            with lock:
                _forget(hub)
            hub.close()
        except MsgdError as error:
            logger.error("closing the PubSub in %s: %s", hub.config.lock_directory, error)
