# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The endpoint: this process's one place in a rendezvous directory, shared by its contexts.

Rule 1.  A process has one endpoint in a directory, however many contexts it has there: the lock file and the socket
carry its pid, and fcntl locks belong to the process.  Contexts differ in their task ids.
Rule 2.  The process is announced (its unique id is written) only once its transport can be reached.
Rule 3.  The lock file names the broadcast classes that the contexts listen to, taken together.
Rule 4.  A forked child has no endpoint.  The fork hook closes the child's copies of the descriptors at once: a socket
that lives on in a child would swallow messages to the parent once the parent is dead.  Every use of a context then
raises ForkedContext, until reinit() has given the child an endpoint of its own.
"""

from __future__ import annotations

import functools
import logging
import operator
import os
import time
from collections.abc import Callable

from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import BackendUnavailable
from msgd.linux import LONGEST_WAIT
from msgd.messaging.handlers import Delivery, Receiver
from msgd.messaging.loading import backend_class
from msgd.presence import Presence
from msgd.results import Statistics
from msgd.wire.message_types import MessageClass

logger = logging.getLogger("msgd")


MovedTo = Callable[["Endpoint"], None]
"""Called after fork: the context is at this endpoint now, and needs a new server id."""


class Endpoint:
    """This process's place in one rendezvous directory: its membership, its transport, and the contexts behind it."""

    def __init__(self, config: Config, directory: str, classes: MessageClass) -> None:
        self.config = config
        self.directory = directory
        self.contexts: dict[int, Receiver] = {}
        self._moved_to: dict[int, MovedTo] = {}
        self._open(classes)

    def _open(self, classes: MessageClass) -> None:
        """Take this process's place.  Raises what Presence and the backend raise; then nothing is left open."""
        self.drops = Drops(logger)
        self.sent = self.sent_bytes = 0
        self.presence = Presence(self.config)
        self.delivery = Delivery(self.presence, self.drops, self.contexts)
        try:
            self.backend = backend_class(self.config.messaging_type)(self.config, self.presence, self.drops)
            self.send = self.backend.send
            try:
                self.presence.announce(classes)
            except BaseException:
                self.backend.close()
                raise
        except BaseException:
            self.presence.close()
            raise
        self.forked = False

    # Contexts

    @property
    def classes(self) -> MessageClass:
        """The broadcast classes that the contexts listen to."""
        return functools.reduce(operator.or_, (one.listens for one in self.contexts.values()), MessageClass(0))

    def choose_task_id(self, wanted: int | None) -> int:
        """The task id of a new context: the wanted one, or the lowest that is free.  ValueError if it is taken."""
        if wanted is None:
            return next(number for number in range(len(self.contexts) + 1) if number not in self.contexts)
        if wanted in self.contexts:
            raise ValueError(f"task id {wanted} belongs to another context of this process")
        return wanted

    def add(self, task_id: int, context: Receiver, moved_to: MovedTo) -> None:
        """Let a context receive messages."""
        self.contexts[task_id] = context
        self._moved_to[task_id] = moved_to
        self._announce()

    def remove(self, task_id: int, timeout: float) -> int:
        """Withdraw a context; with the last one the endpoint closes.  The number of messages not delivered."""
        del self.contexts[task_id], self._moved_to[task_id]
        if self.contexts:
            self._announce()
            return 0
        del _endpoints[self.directory]
        return self._close(timeout)

    def _announce(self) -> None:
        if self.classes != self.presence.classes:
            self.presence.announce(self.classes)

    # Messages

    def dispatch(self, timeout: float | None) -> int:
        """Send what is queued, receive, run handlers; see Messaging.dispatch."""
        backend, delivery = self.backend, self.delivery
        before = delivery.handled
        backend.flush()
        backend.receive(delivery.deliver)
        if delivery.handled != before or timeout == 0:
            return delivery.handled - before
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.contexts and not self.forked:
            left = None if deadline is None else min(deadline - time.monotonic(), LONGEST_WAIT)
            if left is not None and left <= 0:
                break
            backend.wait(left)
            backend.flush()
            backend.receive(delivery.deliver)
            if delivery.handled != before:
                break
        return delivery.handled - before

    def statistics(self) -> Statistics:
        """The counters and the depths of the queues."""
        delivery = self.delivery
        return Statistics(
            self.sent,
            self.sent_bytes,
            delivery.received,
            delivery.received_bytes,
            *self.backend.statistics(),
            delivery.handler_errors,
            dict(self.drops.counts),
        )

    # The end

    def _flush(self, timeout: float) -> None:
        """Send what is queued; wait at most `timeout` seconds for receivers that are slow."""
        deadline = time.monotonic() + timeout
        self.backend.flush()
        own = self.presence.pid  # nobody will read what waits for this process itself
        while self.backend.statistics().queued_messages > self.backend.pending(own):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self.backend.flush(min(left, LONGEST_WAIT))

    def _close(self, timeout: float) -> int:
        """Flush for at most `timeout` seconds and withdraw; the number of messages that could not be delivered."""
        self._flush(timeout)
        undelivered = self.backend.give_up()
        self.backend.close()
        self.presence.close()
        return undelivered

    # Fork

    def abandon(self) -> None:
        """In a forked child: let go of the parent's endpoint."""
        self.forked = True
        self.backend.abandon()
        self.presence.abandon()

    def reinit(self) -> None:
        """In a forked child: give the contexts an endpoint of the child's own.

        It is this one, opened again, or the one that the child has opened in the directory before.
        """
        if not self.forked:
            return
        other = _endpoints.get(self.directory)
        if other is None:
            self._open(self.classes)
            _endpoints[self.directory] = self
        else:
            other._adopt(self)
        for moved_to in self._moved_to.values():
            moved_to(other or self)

    def _adopt(self, forked: Endpoint) -> None:
        taken = self.contexts.keys() & forked.contexts.keys()
        if taken:
            raise ValueError(f"task id {min(taken)} belongs to another context of this process")
        self.contexts.update(forked.contexts)
        self._moved_to.update(forked._moved_to)
        self._announce()


_endpoints: dict[str, Endpoint] = {}
"""By lock directory; process-wide, as the fcntl locks behind them are.  Nothing outside this file uses it."""


def join(config: Config, classes: MessageClass) -> Endpoint:
    """The endpoint of this process in the configured directory, opened if there is none yet.

    Raises BackendUnavailable if the process is there with another messaging type, and what opening raises.
    """
    directory = os.path.realpath(config.lock_directory)
    endpoint = _endpoints.get(directory)
    if endpoint is None:
        endpoint = _endpoints[directory] = Endpoint(config, directory, classes)
    elif endpoint.config.messaging_type != config.messaging_type:
        raise BackendUnavailable(
            f"this process is in {directory} with messaging type {endpoint.config.messaging_type} already;"
            f" close that context before using {config.messaging_type}"
        )
    return endpoint


def _abandon_endpoints() -> None:
    for endpoint in _endpoints.values():
        endpoint.abandon()
    _endpoints.clear()


os.register_at_fork(after_in_child=_abandon_endpoints)
