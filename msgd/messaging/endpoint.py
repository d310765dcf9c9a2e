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
Rule 5.  What is received is put into the inbox under the lock, and delivered from there without it, by the one thread
whose turn it is (turn.py).  A message that an interrupt leaves in the inbox is delivered by the next dispatch.
Which endpoints a process has, and what becomes of them at fork and exit, is in process.py.
"""

from __future__ import annotations

import functools
import logging
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import (
    ContextClosed,
    ForkedContext,
    NoSuchProcess,
    is_of_system,
    system_error,
)
from msgd.linux import LONGEST_WAIT
from msgd.messaging.descriptors import own_fds
from msgd.messaging.dispatcher import Background
from msgd.messaging.handlers import ContextView, Delivery
from msgd.messaging.loading import open_backend
from msgd.messaging.observer import Observer
from msgd.messaging.requests import Requests
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

_ROUNDS_MAX = 1000
"""Rounds of dispatch_all(): a flood does not keep it for ever."""

_CLEANED_AT_OPEN = 64
"""Entries that opening an endpoint checks for dead processes: a service without the daemon gathers none of them."""


class Endpoint:
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

    # Dispatching

    def dispatch(self, timeout: float | None, *, as_dispatcher: bool = False) -> int:
        """Send what is queued, receive, run handlers; see Messaging.dispatch.  Raises AlreadyDispatching.

        `as_dispatcher`: the caller is the background dispatcher.
        """
        me, turn, delivery = threading.get_ident(), self.turn, self.delivery
        outermost, before = turn.owner != me, delivery.handled
        try:
            if self._receive(me if outermost else 0, timeout, as_dispatcher):
                self._deliver()
                if delivery.handled != before:
                    return delivery.handled - before
            elif turn.owner != me:
                return 0  # a guest sees to what there is
            if timeout is not None and timeout <= 0:
                return delivery.handled - before
            deadline = None if timeout is None else time.monotonic() + timeout
            left = None if timeout is None else min(timeout, LONGEST_WAIT)
            while self.contexts and not (self.forked or self.closed):
                self.backend.wait(left)
                if self._receive():
                    self._deliver()
                if delivery.handled != before:
                    break
                if deadline is not None and (left := min(deadline - time.monotonic(), LONGEST_WAIT)) <= 0:
                    break
            return delivery.handled - before
        except (OSError, MemoryError) as error:
            if is_of_system(error):
                raise system_error("dispatching", error) from error
            raise
        finally:
            if outermost and turn.owner == me:
                turn.owner = 0
                if turn.hosts_waiting or turn.waiters:
                    turn.notify()

    def dispatch_all(self) -> bool:
        """Dispatch until nothing comes, a bounded number of rounds.  Returns False if another thread is to dispatch."""
        me, turn = threading.get_ident(), self.turn
        outermost = turn.owner != me
        try:
            if outermost and not turn.take_as_guest():
                return False
            for _ in range(_ROUNDS_MAX):
                if not self.round():
                    break
            return True
        finally:
            if outermost:
                turn.release(me)

    def round(self) -> bool:
        """Flush, receive once and deliver.  Returns whether anything had come.  For the thread whose turn it is."""
        return self._receive() and self._deliver()

    def _receive(self, host: int = 0, timeout: float | None = 0, as_dispatcher: bool = False) -> bool:
        """Flush, and receive once into the inbox.

        A `host` that is not 0 is this thread, and takes the turn first: one lock does for both.  Returns whether
        _deliver() has something to do: not if nothing has come and nobody is to be told of the round, nor if another
        thread dispatches, or the endpoint is closed.
        """
        with self.lock:
            if host:
                turn = self.turn
                if not (turn.owner or turn.has_dispatcher):
                    turn.owner, turn.is_guest = host, False
                elif not turn.take_as_host(None if as_dispatcher else timeout, as_dispatcher=as_dispatcher):
                    return False  # a guest sees to what there is
            if self.closed or self.forked:
                return False
            backend = self.backend
            if backend.unsent or (backend.gathered and not host):  # a handler that dispatches has sent something
                backend.flush()
            elif (
                host
                and not (self.spinner.number or self.inbox or self.turn.waiters or self.after_rounds or self.observer)
                and (timeout is None or timeout > 0)
            ):
                return False  # while it does not spin, there is mostly nothing here yet, and wait() looks as well
            try:
                backend.receive(self.inbox.append)
            except BaseException:
                backend.wake()  # a signal's handler has raised: the next dispatch is to find what has come
                raise
        return bool(self.inbox or self.turn.waiters or self.after_rounds or self.observer)

    def _deliver(self) -> bool:
        """Run the handlers of what is in the inbox.  Returns whether there was anything."""
        inbox, delivery, before = self.inbox, self.delivery, self.delivery.received
        try:
            if inbox:
                if self.backend.gathers:
                    self._deliver_gathering()
                else:
                    delivery.run(inbox)
            if self.observer is not None:
                self.observer.dispatched()
            return delivery.received != before
        finally:
            if inbox and not (self.closed or self.forked):
                self.backend.wake()  # an interrupt has come: the next dispatch is to find what it has left here
            if self.turn.waiters:
                self.idle_rounds += delivery.received == before
                with self.lock:
                    self.turn.wake_waiters()
            for after_round in self.after_rounds:
                after_round()

    def _deliver_gathering(self) -> None:
        """Run the handlers, and send what they have sent at once for all of them."""
        backend = self.backend
        backend.begin_gathering(len(self.inbox) == 1)
        try:
            self.delivery.run(self.inbox)
        finally:
            if backend.end_gathering():
                with self.lock:
                    if not (self.closed or self.forked):
                        backend.flush()

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
