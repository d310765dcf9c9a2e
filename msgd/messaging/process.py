# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The endpoints of this process, one for each directory, and what becomes of them at fork and at exit.

Rule 1.  The first context in a directory opens the endpoint there, and the last one closes it.
Rule 2.  A forked child has no endpoint.  The fork hooks take the locks before the fork, so that the child finds every
table whole.  In the child they close its copies of the descriptors: a socket that lives on in a child would swallow
messages to the parent once the parent is dead.  Every use of a context then raises ForkedContext, until reinit().
Rule 3.  A process that ends without closing its contexts closes them at exit, and warns (ResourceWarning).
Rule 4.  The lock of the table is taken before that of an endpoint, never after it.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import warnings

from msgd.config import Config
from msgd.errors import BackendUnavailable, MsgdError
from msgd.messaging.border import refusals_documented
from msgd.messaging.closing import close
from msgd.messaging.endpoint import Endpoint, MovedTo
from msgd.messaging.handlers import ContextView
from msgd.wire.message_types import MessageClass

logger = logging.getLogger("msgd")

_endpoints: dict[str, Endpoint] = {}
"""By lock directory; process-wide, as the fcntl locks behind them are.  Nothing outside this file uses it."""

_lock = threading.RLock()
_closed = threading.Condition(_lock)
"""Notified when an endpoint has been closed: until then nobody opens another in its directory."""
_GRACE = 2.0
"""Seconds that opening waits for another thread's close(), besides that one's timeout."""


@refusals_documented
def join(
    config: Config, classes: MessageClass, task_id: int | None, context: ContextView, moved_to: MovedTo
) -> tuple[Endpoint, int]:
    """Add a context to the endpoint in the configured directory, opened if there is none.

    Returns the endpoint and the context's task id.
    Raises BackendUnavailable if the process is there with another messaging type, ValueError for a task id that is
    taken, and what opening raises.
    """
    directory = os.path.realpath(config.lock_directory)
    with _closed:
        endpoint = _endpoints.get(directory)
        if endpoint is not None and endpoint.closed:
            _closed.wait_for(lambda: directory not in _endpoints, endpoint.config.close_timeout + _GRACE)
            endpoint = _endpoints.get(directory)
        if endpoint is not None and endpoint.closed:
            raise BackendUnavailable(
                f"another thread is still closing this process's context in {directory}; try again"
            )
        if endpoint is None:
            endpoint = _endpoints[directory] = Endpoint(config, directory, classes, task_id or 0)
        elif endpoint.config.messaging_type != config.messaging_type:
            raise BackendUnavailable(
                f"this process is in {directory} with messaging type {endpoint.config.messaging_type} already;"
                f" close that context before using {config.messaging_type}"
            )
        return endpoint, endpoint.add(task_id, context, moved_to)


def leave(endpoint: Endpoint, task_id: int, timeout: float) -> int:
    """Withdraw a context; with the last one the endpoint closes.  Returns the number of messages not delivered."""
    with _lock:
        endpoint.remove(task_id)
        if endpoint.contexts:
            return 0
        endpoint.closed = True
        endpoint.plain_sender = None
    try:
        return close(endpoint, timeout)
    finally:
        with _closed:
            if _endpoints.get(endpoint.directory) is endpoint:
                del _endpoints[endpoint.directory]
            _closed.notify_all()


def reinit(endpoint: Endpoint) -> None:
    """In a forked child: give the contexts of the parent's endpoint an endpoint of the child's own.

    It is the same object, opened again, or the endpoint that the child has opened in the directory before.
    """
    with _lock:
        if not endpoint.forked:
            return
        other = _endpoints.get(endpoint.directory)
        if other is None:
            endpoint.open(endpoint.classes, endpoint.contexts)
            _endpoints[endpoint.directory] = endpoint
        else:
            other.adopt(endpoint)
        for moved_to in tuple(endpoint.moved_to.values()):
            moved_to(other or endpoint)


class _ForkHooks:
    """Holds every lock over a fork; in the child, lets go of the parent's endpoints."""

    def __init__(self) -> None:
        self._held: list[Endpoint] = []

    def before(self) -> None:
        _lock.acquire()
        self._held = list(_endpoints.values())
        for endpoint in self._held:
            endpoint.lock.acquire()

    def in_parent(self) -> None:
        while self._held:
            self._held.pop().lock.release()
        _lock.release()

    def in_child(self) -> None:
        global _lock, _closed
        _lock = threading.RLock()
        _closed = threading.Condition(_lock)
        self._held.clear()
        for endpoint in _endpoints.values():
            endpoint.abandon()
        _endpoints.clear()


_hooks = _ForkHooks()
os.register_at_fork(before=_hooks.before, after_in_parent=_hooks.in_parent, after_in_child=_hooks.in_child)


@atexit.register
def _close_endpoints() -> None:
    """Leave no lock file and no socket behind a process that ends without closing its contexts."""
    for endpoint in tuple(_endpoints.values()):
        try:
            for task_id in tuple(endpoint.contexts):
                leave(endpoint, task_id, endpoint.config.close_timeout)
        except MsgdError as error:
            logger.error("closing the messaging context in %s at exit: %s", endpoint.directory, error)
        text = f"unclosed messaging context in {endpoint.directory}; use `with Messaging(...)`, or call close()"
        warnings.warn(text, ResourceWarning, stacklevel=2)
