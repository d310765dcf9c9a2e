# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The endpoint: this process's one place in a rendezvous directory, shared by its contexts and its threads.

Rule 1.  A process has one endpoint in a directory, however many contexts it has there: the lock file and the socket
carry its pid, and fcntl locks belong to the process.  Contexts differ in their task ids.
Rule 2.  The process is announced (its unique id is written) only once its transport can be reached.
Rule 3.  The lock file names the task ids of the contexts, and the broadcast classes that they listen to, together.
Rule 4.  `lock` guards the transport, the membership and the tables.  It is held for moments: never while a handler
runs, and never while a thread waits, except in a process with one thread and in close().  So any thread may send while
another one dispatches.
How an endpoint dispatches is in rounds.py; which endpoints a process has, and what becomes of them at fork and exit, in
process.py.
"""

from __future__ import annotations

import functools
import logging
import operator
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import ContextClosed, ForkedContext, NoSuchProcess
from msgd.messaging.descriptors import own_fds
from msgd.messaging.dispatcher import Background
from msgd.messaging.handlers import ContextView, Delivery
from msgd.messaging.loading import open_backend
from msgd.messaging.observer import Observer
from msgd.messaging.requests import Requests
from msgd.messaging.rounds import Rounds
from msgd.messaging.turn import Turn
from msgd.presence import Presence
from msgd.results import SendStatus, Statistics
from msgd.wire.header import Message
from msgd.wire.message_types import MessageClass
from msgd.wire.server_id import ServerID

if TYPE_CHECKING:
    from msgd.cluster.backend import ClusteredBackend
    from msgd.messaging.monitored import Monitored

logger = logging.getLogger("msgd")

MovedTo = Callable[["Endpoint"], None]
"""Called after fork: the context is at this endpoint now, and needs a new server id."""

_CLEANED_AT_OPEN = 64
"""Entries that opening an endpoint checks for dead processes: a service without the daemon gathers none of them."""


class Endpoint(Rounds):
    """This process's place in one rendezvous directory: its membership, its transport, and the contexts behind it."""

    def __init__(self, config: Config, directory: str, classes: MessageClass, task_id: int) -> None:
        self.config = config
        self.directory = directory
        self.contexts: dict[int, ContextView] = {}
        self.moved_to: dict[int, MovedTo] = {}
        self.observer: Observer | None = None
        self.monitored: Monitored | None = None
        """Who watches; None while nobody does."""
        self.after_rounds: tuple[Callable[[], None], ...] = ()
        """Called after each round, in the thread that dispatches."""
        self.open(classes, (task_id,))

    def open(self, classes: MessageClass, tasks: Iterable[int]) -> None:
        """Take this process's place, in a forked child a new one; `tasks`: the ids of its first contexts.

        Raises what Presence and the backend raise; then nothing is left open.
        """
        self.lock = threading.RLock()
        self.drops = Drops(logger)
        self.sent = self.sent_bytes = 0
        self.inbox: deque[Message] = deque()
        self.presence = Presence(self.config)
        self.requests = Requests(self.presence)
        self.delivery = Delivery(self.presence, self.drops, self.contexts, self.requests, self.send)
        try:
            self.backend, self.cluster = open_backend(self.config, self.presence, self.drops, self._note_number)
            self.transmit, self.spinner = self.backend.send, self.backend.spinner
            try:
                self.presence.announce(classes, tasks)
                self.presence.clean_up_some(_CLEANED_AT_OPEN, self.backend.remove)
            except BaseException:
                self.backend.close()
                raise
        except BaseException:
            self.presence.close()
            raise
        self._plain_sender = self.plain_sender = self.backend.plain_sender(self.lock)
        """The compiled twin of send(); `plain_sender` is None while it may not be used, and `_plain_sender` counts."""
        self.turn = Turn(self.lock, self.backend.wake)
        dispatch = functools.partial(self.dispatch, 0, as_dispatcher=True)
        self.background = Background(self.turn, self.backend, dispatch)
        self.idle_rounds = 0
        """Rounds in which nothing had come, counted while threads wait beside the one that dispatches."""
        self.forked = self.closed = False
        if self.observer is not None:
            self.observe(self.observer)

    def observe(self, observer: Observer | None) -> None:
        """Let the observer (None: nobody) see what goes through from now on, in the place of an earlier one."""
        self.observer = self.delivery.observer = observer
        self.drops.on_drop = None if observer is None else observer.dropped
        may_be_plain = observer is None and not (self.closed or self.forked)
        self.plain_sender = self._plain_sender if may_be_plain else None

    def set_monitored(self, monitored: Monitored) -> None:
        """Let monitors see what goes through, from now on until end_monitored()."""
        with self.lock:
            self.observe(monitored)
            self.monitored, self.transmit = monitored, monitored.transmit

    def end_monitored(self) -> None:
        """Nobody watches any longer: everything is as it was before."""
        with self.lock:
            if self.monitored is None:
                return
            before, self.monitored, self.transmit = self.monitored.before, None, self.backend.send
            if before is not None:
                self.observe(before)
                return
            self.observer = self.delivery.observer = None
            self.drops.on_drop = None
            self.plain_sender = None if self.closed or self.forked else self._plain_sender

    # Contexts

    @property
    def classes(self) -> MessageClass:
        """The broadcast classes that the contexts listen to."""
        return functools.reduce(operator.or_, (one.listens for one in self.contexts.values()), MessageClass(0))

    def add(self, wanted: int | None, context: ContextView, moved_to: MovedTo) -> int:
        """Let a context receive messages.  Returns its task id, the wanted one or the lowest that is free.

        ValueError if the wanted one is taken.
        """
        with self.lock:
            if wanted in self.contexts:
                raise ValueError(f"task id {wanted} belongs to another context of this process")
            free = (number for number in range(len(self.contexts) + 1) if number not in self.contexts)
            task_id = next(free) if wanted is None else wanted
            self.contexts[task_id] = context
            self.moved_to[task_id] = moved_to
            try:
                self.announce()
            except BaseException:
                del self.contexts[task_id], self.moved_to[task_id]
                raise
            return task_id

    def remove(self, task_id: int) -> None:
        """Withdraw a context."""
        with self.lock:
            del self.contexts[task_id], self.moved_to[task_id]
            if self.contexts:
                self.announce()

    def adopt(self, forked: Endpoint) -> None:
        """Take over the contexts of an abandoned endpoint.  ValueError if a task id is taken."""
        with self.lock:
            taken = self.contexts.keys() & forked.contexts.keys()
            if taken:
                raise ValueError(f"task id {min(taken)} belongs to another context of this process")
            self.contexts.update(forked.contexts)
            self.moved_to.update(forked.moved_to)
            self.announce()

    def announce(self) -> None:
        """Write down which contexts there are, and what they listen to.  Call it with the lock held."""
        self.delivery.note_listeners()
        self.presence.announce(self.classes, self.contexts)

    def _note_number(self) -> None:
        """The number of this node in the cluster is known, or another one: the contexts' addresses contain it."""
        for context in tuple(self.contexts.values()):
            context._take_identity()

    def check_usable(self) -> None:
        """Raise ForkedContext in a forked child, ContextClosed once the endpoint is closed."""
        if self.forked:
            raise ForkedContext(
                f"this context belongs to pid {self.presence.pid}, which forked this one; call reinit() in the child"
            )
        if self.closed:
            raise ContextClosed("this messaging context has been closed")

    # Sending

    def check_task(self, dst: ServerID) -> None:
        """Raise NoSuchProcess if the process addressed lives and has no such task, as far as its lock file tells.

        ValueError if it is no address.  A context keeps the addresses that have passed, until a message has been
        refused because its context has been closed since (_note_refusal in context.py).  Call it with the lock held.
        """
        dst.check()
        process = self.presence.process(dst.pid) if self.presence.is_here(dst) else None
        if process is not None and process.is_addressed_by(dst) and not process.has_task(dst.task_id):
            raise NoSuchProcess(f"no process {dst}: its pid lives and has no such task")

    def check_node(self, dst: ServerID) -> None:
        """Raise NoSuchProcess if the address is of another node and this machine is not clustered."""
        if not self.presence.is_here(dst):
            self.elsewhere(dst)

    def elsewhere(self, dst: ServerID) -> ClusteredBackend:
        """What reaches a process of another node.  Raises NoSuchProcess if this machine is not clustered."""
        if self.cluster is None:
            raise NoSuchProcess(f"no process {dst}: it is on another node, and this machine is not clustered")
        return self.cluster

    def send(
        self,
        dst: ServerID,
        src: ServerID,
        message_type: int,
        data: bytes,
        fds: Collection[int] = (),
        duplicates_allowed: bool = True,
    ) -> SendStatus:
        """Send one message or queue it; see Backend.send."""
        with self.lock:
            if self.closed or self.forked:
                self.check_usable()
            status = self.transmit(dst, src, message_type, data, fds, duplicates_allowed)
            if status is not SendStatus.MERGED:
                self.sent += 1
                self.sent_bytes += len(data)
        if self.observer is not None:
            self.observer.sent(message_type, len(data))
        return status

    # The background dispatcher

    def start(self) -> None:
        """Dispatch in a thread of its own from now on.  Does nothing if it does already.

        Raises BackendUnavailable if the transport needs the main thread, TransportError if there can be no more
        threads.
        """
        with self.lock:
            self.check_usable()
            self.background.start()

    def statistics(self) -> Statistics:
        """The counters and the depths of the queues."""
        delivery, plain = self.delivery, self._plain_sender
        with self.lock:
            return Statistics(
                self.sent if plain is None else self.sent + plain.sent,
                self.sent_bytes if plain is None else self.sent_bytes + plain.sent_bytes,
                delivery.received,
                delivery.received_bytes,
                *self.backend.statistics(),
                delivery.handler_errors,
                dict(self.drops.counts),
                {} if self.cluster is None else self.cluster.traffic(),
            )

    # Fork

    def abandon(self) -> None:
        """In a forked child: let go of the parent's endpoint."""
        self.forked = True
        self.plain_sender = None
        for context in self.contexts.values():
            context.known_tasks.clear()
        self.lock = threading.RLock()
        self.background.abandon()
        self.after_rounds = ()
        if self.monitored is not None:
            self.monitored.close()
            self.observer, self.monitored = self.monitored.before, None
        self.backend.abandon()
        self.presence.abandon()
        while self.inbox:
            own_fds(self.inbox.popleft())[1].close()
