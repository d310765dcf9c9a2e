# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Closing an endpoint: what is queued leaves, whoever dispatches is made to leave, and the files go."""

from __future__ import annotations

import contextlib
import threading
import time

from msgd.errors import ContextClosed, TransportError
from msgd.linux import LONGEST_WAIT
from msgd.messaging.descriptors import own_fds
from msgd.messaging.endpoint import Endpoint
from msgd.messaging.handlers import about, describe

_GRACE = 1.0
"""Seconds that closing waits in any case for a thread to leave dispatch, which it does at once but for its handler."""


def close(endpoint: Endpoint, timeout: float) -> int:
    """Flush for at most `timeout` seconds and withdraw.

    Returns the number of messages that could not be delivered.  Raises TransportError.
    """
    deadline = time.monotonic() + timeout
    endpoint.plain_sender = None
    endpoint.closed = True  # from here on nobody else sends, and a thread that dispatches leaves
    endpoint.background.stop(timeout)
    me, turn = threading.get_ident(), endpoint.turn
    outermost = turn.owner != me
    try:
        is_mine = not outermost or turn.take_to_close(max(deadline, time.monotonic() + _GRACE))
        with endpoint.lock, contextlib.ExitStack() as leaving:  # it leaves, whatever is refused before
            leaving.callback(_withdraw, endpoint)
            leaving.callback(
                endpoint.requests.settle_all, lambda: ContextClosed("this messaging context has been closed")
            )
            _flush(endpoint, deadline)
            undelivered = endpoint.backend.give_up()
        if is_mine:  # else the thread that is in a handler delivers what is left
            _drop_inbox(endpoint)
        if endpoint.monitored is not None:
            endpoint.monitored.close()
        return undelivered
    except OSError as error:
        raise TransportError(f"closing the endpoint in {endpoint.directory}: {error.strerror}") from error
    finally:
        if outermost:
            turn.release(me)


def _flush(endpoint: Endpoint, deadline: float) -> None:
    """Send what is queued, and wait until the deadline for receivers that are slow."""
    backend, own = endpoint.backend, endpoint.presence.pid  # nobody will read what waits for this process itself
    backend.flush()
    while backend.statistics().queued_messages > backend.pending(own):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        backend.flush(min(left, LONGEST_WAIT))


def _withdraw(endpoint: Endpoint) -> None:
    """Remove the files and close the descriptors; these are closed even if the files cannot be removed."""
    try:
        endpoint.backend.close()
    except (OSError, MemoryError):
        endpoint.backend.abandon()
        raise
    finally:
        try:
            endpoint.presence.close()
        except OSError:
            endpoint.presence.abandon()
            raise


def _drop_inbox(endpoint: Endpoint) -> None:
    """Count what has been received and will not be handled."""
    while endpoint.inbox:
        message, fds = own_fds(endpoint.inbox.popleft())
        endpoint.drops("not handled before close", describe(message), about_it=about(message))
        fds.close()
