# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The general messaging code: contexts with handlers, dispatch, send, broadcast, request and reply.

A process has one endpoint in a rendezvous directory, whatever the number of its contexts: the lock file and the
socket carry its pid, and fcntl locks belong to the process.  Contexts are told apart by their task id and share the
endpoint; dispatch on any of them runs the handlers of all, so one event loop serves the process.  A context belongs
to one thread at a time.

A broadcast is one message to each process: the lock file says which classes its contexts listen to, taken together.
To msgd's own processes it goes to every task, and the receiver gives it to those contexts that listen to its class;
Samba's get it as a message to task 0.

After fork() the child holds copies of the parent's descriptors.  An endpoint's socket that lives on in a child would
swallow messages to the parent once it is dead, so a fork hook closes the copies at once; every use of the context
then raises ForkedContext until reinit() has given the child an endpoint of its own.
"""

from __future__ import annotations

import functools
import importlib
import logging
import operator
import os
import struct
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self

from msgd._registry import MESSAGING_MODULES
from msgd.backends.base import Backend
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import (
    BackendUnavailable,
    ContextClosed,
    ForkedContext,
    MessageTooLarge,
    NoSuchProcess,
    QueueFull,
    ReplyTimeout,
    TransportError,
)
from msgd.events import HANDLER_FAILED, fields
from msgd.linux import LONGEST_WAIT
from msgd.presence import Presence, Process
from msgd.results import Broadcast, SendStatus, Statistics
from msgd.wire.header import MAX_FDS, Message
from msgd.wire.message_types import TYPE_MAX, MessageClass, MessageType, message_class, type_name
from msgd.wire.server_id import ANY_PROCESS, EVERY_TASK, NONCLUSTER_VNN, TASK_ID_MAX, ServerID

Handler = Callable[[Message], None]
Destination = ServerID | int | str

logger = logging.getLogger("msgd")

_RESOLVED_MAX = 1024

REPLY_TIMEOUT = 10.0
"""Seconds request() waits by default; smbcontrol's own default."""


class _Endpoint:
    """This process's place in one rendezvous directory, shared by its contexts."""

    def __init__(self, config: Config, directory: str, classes: MessageClass) -> None:
        self.config = config
        self.directory = directory
        self.contexts: dict[int, Messaging] = {}
        self.open(classes)

    def open(self, classes: MessageClass) -> None:
        """Take this process's place; on an abandoned endpoint, a forked child's own place instead of its parent's."""
        self.drops = Drops(logger)
        self.sent = self.sent_bytes = self.received = self.received_bytes = self.handled = self.handler_errors = 0
        self.presence = Presence(self.config)
        self.addressed_as = frozenset((self.presence.unique_id, *ANY_PROCESS))
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

    @property
    def classes(self) -> MessageClass:
        """The broadcast classes that the contexts listen to."""
        return functools.reduce(operator.or_, (one.listens for one in self.contexts.values()), MessageClass(0))

    def announce(self) -> None:
        """Let the lock file say what the contexts listen to now."""
        if self.classes != self.presence.classes:
            self.presence.announce(self.classes)

    def deliver(self, message: Message) -> None:
        """Run the handlers of the context that `message` is for; in one piece, as every message comes this way."""
        message_type, _, (pid, task_id, _, unique_id), data, _ = message
        context = self.contexts.get(task_id)
        if context is None and task_id == EVERY_TASK:
            self._deliver_to_all(message)
            return
        self.received += 1
        self.received_bytes += len(data)
        if context is None or unique_id not in self.addressed_as or pid != self.presence.pid:
            self.drops("for a process or task that is gone", _describe(message), about_it=about(message))
            return
        handlers = context.handlers.get(message_type) or context.default_handlers.get(message_type)
        if handlers is None:
            self.drops("of a type without handler", _describe(message), about_it=about(message))
            return
        self.handled += 1
        for handler in handlers:
            try:
                handler(message)
            except Exception:
                self.handler_errors += 1
                extra = fields(HANDLER_FAILED, **about(message))
                logger.exception("handler for %s", _describe(message), extra=extra)

    def _deliver_to_all(self, message: Message) -> None:
        """Deliver a broadcast to each context that listens to its class, as a message to that one."""
        kind = message_class(message.type)
        listening = [task_id for task_id, context in self.contexts.items() if kind in context.listens]
        if not listening:
            self.drops("of a class nobody listens to", _describe(message), about_it=about(message))
        for task_id in listening:
            if task_id in self.contexts:  # a handler may have closed it
                self.deliver(message._replace(dst=message.dst._replace(task_id=task_id)))

    def dispatch(self, timeout: float | None) -> int:
        """Send on and receive; see Messaging.dispatch."""
        backend, before = self.backend, self.handled
        backend.flush()
        backend.receive(self.deliver)
        if self.handled != before or timeout == 0:
            return self.handled - before
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.contexts and not self.forked:
            left = None if deadline is None else min(deadline - time.monotonic(), LONGEST_WAIT)
            if left is not None and left <= 0:
                break
            backend.wait(left)
            backend.flush()
            backend.receive(self.deliver)
            if self.handled != before:
                break
        return self.handled - before

    def flush(self, timeout: float) -> None:
        """Send on what is queued, waiting at most `timeout` seconds for slow receivers."""
        deadline = time.monotonic() + timeout
        self.backend.flush()
        own = self.presence.pid  # nobody reads what waits for this process itself
        while self.backend.statistics().queued_messages > self.backend.pending(own):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self.backend.flush(min(left, LONGEST_WAIT))

    def close(self, timeout: float) -> int:
        """Flush for at most `timeout` seconds, withdraw; the number of messages that could not be delivered."""
        self.flush(timeout)
        undelivered = self.backend.give_up()
        self.backend.close()
        self.presence.close()
        return undelivered

    def adopt(self, forked: _Endpoint) -> None:
        """Take over the contexts of an abandoned endpoint: the child has opened this one before their reinit()."""
        taken = self.contexts.keys() & forked.contexts.keys()
        if taken:
            raise ValueError(f"task id {min(taken)} is another context's of this process")
        for context in forked.contexts.values():
            context._endpoint = self
        self.contexts |= forked.contexts
        self.announce()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's endpoint."""
        self.forked = True
        self.backend.abandon()
        self.presence.abandon()


_endpoints: dict[str, _Endpoint] = {}
"""The endpoints of this process by lock directory: process-wide, as the fcntl locks behind them are."""


def _abandon_endpoints() -> None:
    for endpoint in _endpoints.values():
        endpoint.abandon()
    _endpoints.clear()


os.register_at_fork(after_in_child=_abandon_endpoints)


def backend_class(messaging_type: str) -> type[Backend]:
    """The class of a compiled-in messaging type, loaded by name through the generated registry.

    Raises BackendUnavailable.
    """
    for module in MESSAGING_MODULES:
        if module.name == messaging_type:
            try:
                backend: type[Backend] = importlib.import_module(module.import_path).BACKEND
            except ImportError as error:
                raise BackendUnavailable(
                    f"messaging type {messaging_type}: {error}; install it or configure"
                ) from error
            return backend
    known = ", ".join(module.name for module in MESSAGING_MODULES)
    raise BackendUnavailable(f"messaging type {messaging_type} is not compiled in; compiled in: {known}")


def about(message: Message) -> dict[str, object]:
    """The journal's fields of what has to do with a message."""
    return {"PEER_PID": message.src.pid, "MESSAGE_TYPE": type_name(message.type)}


def _describe(message: Message) -> str:
    return f"{type_name(message.type)} from {message.src} to {message.dst}"


class Messaging:
    """A messaging context: registers handlers, sends, and dispatches what came in.

    A context manager; leaving it closes the context.  `config` defaults to the configured smb.conf.  Several contexts
    of one process in one directory share its endpoint and differ in `task_id` (default: the lowest free one).
    `listens`: the classes of broadcasts that this context wants; what is sent to it alone comes in any case.

    Raises ConfigError, UnsafeDirectory, TransportError, BackendUnavailable.
    """

    def __init__(
        self, config: Config | None = None, *, task_id: int | None = None, listens: MessageClass = MessageClass.ALL
    ) -> None:
        self.config = Config.load() if config is None else config
        self.listens = listens
        self._closed = True
        self._names: set[str] = set()
        if task_id is not None and not 0 <= task_id <= TASK_ID_MAX:
            raise ValueError(f"task id {task_id} is not one: they go from 0 to {TASK_ID_MAX}")
        self._endpoint = self._join(os.path.realpath(self.config.lock_directory))
        contexts = self._endpoint.contexts
        if task_id is None:
            task_id = next(number for number in range(len(contexts) + 1) if number not in contexts)
        elif task_id in contexts:
            raise ValueError(f"task id {task_id} is another context's of this process")
        self._task_id = task_id
        self.handlers: dict[int, tuple[Handler, ...]] = {}
        self.default_handlers: dict[int, tuple[Handler, ...]] = {MessageType.PING: (self._answer_ping,)}
        self._resolved: dict[Destination, ServerID] = {}
        self._max_message_size = self.config.max_message_size
        self._take_identity()
        contexts[task_id] = self
        self._closed = False
        self._endpoint.announce()

    def _join(self, directory: str) -> _Endpoint:
        endpoint = _endpoints.get(directory)
        if endpoint is None:
            endpoint = _endpoints[directory] = _Endpoint(self.config, directory, self.listens)
        elif endpoint.config.messaging_type != self.config.messaging_type:
            raise BackendUnavailable(
                f"this process is in {directory} with messaging type {endpoint.config.messaging_type} already;"
                f" close that context before using {self.config.messaging_type}"
            )
        return endpoint

    def _take_identity(self) -> None:
        presence = self._endpoint.presence
        self.server_id = ServerID(presence.pid, self._task_id, NONCLUSTER_VNN, presence.unique_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._endpoint.forked:
            self.close()

    # Handlers

    def register(self, message_type: int, handler: Handler) -> None:
        """Call `handler(message)` for each message of the type; several handlers of a type run in this order.

        A PING is answered by the context itself as long as no handler is registered for it.  What a handler raises is
        logged with the type and does not stop the others.  A message's descriptors are closed after its handlers.
        """
        self._check_usable()
        _check_type(message_type)
        self.handlers[message_type] = (*self.handlers.get(message_type, ()), handler)

    def deregister(self, message_type: int, handler: Handler | None = None) -> None:
        """Call `handler` (None: any of the type's) no more."""
        self._check_usable()
        left = tuple(one for one in self.handlers.get(message_type, ()) if handler is not None and one != handler)
        if left:
            self.handlers[message_type] = left
        else:
            self.handlers.pop(message_type, None)

    def _answer_ping(self, message: Message) -> None:
        self.reply(message, MessageType.PONG, message.data)

    # Sending

    def send(
        self,
        dst: Destination,
        message_type: int,
        data: bytes = b"",
        *,
        fds: Collection[int] = (),
        duplicates_allowed: bool = True,
        timeout: float | None = None,
    ) -> SendStatus:
        """Send a message to a ServerID, a pid, or server-id text.

        Returns at once: what the receiver has no room for is queued here, in order, and leaves from dispatch or
        close().  `timeout`: seconds to wait for room when that queue is at its bound; nothing is received
        meanwhile, so two processes that are full towards each other wait in vain.  `fds`: at most 127 open
        descriptors, duplicated into the receiver.  With duplicates_allowed=False, a message that is identical
        to one still pending is merged with it.

        Raises NoSuchProcess, MessageTooLarge, QueueFull (nothing was sent then), TransportError, ForkedContext,
        ContextClosed; ValueError for a malformed destination or type.
        """
        endpoint = self._endpoint
        if self._closed or endpoint.forked:
            self._check_usable()
        if type(dst) is not ServerID:
            dst = self._resolved.get(dst) or self._resolve(dst)
        if dst.vnn != NONCLUSTER_VNN:
            raise NoSuchProcess(f"{dst} is on another node; this machine is not clustered")
        if not 0 <= message_type <= TYPE_MAX:
            _check_type(message_type)
        length = len(data)
        if length > self._max_message_size or (fds and len(fds) > MAX_FDS):
            raise _too_large(data, fds, self.config)
        try:
            status = endpoint.send(dst, self.server_id, message_type, data, fds, duplicates_allowed)
        except (struct.error, OverflowError):
            dst.check()  # a field that does not fit the wire's is the caller's ValueError
            raise
        except QueueFull:
            if not timeout:
                raise
            status = self._send_when_room(dst, message_type, data, fds, duplicates_allowed, timeout)
        if status is not SendStatus.MERGED:
            endpoint.sent += 1
            endpoint.sent_bytes += length
        return status

    def _resolve(self, dst: Destination) -> ServerID:
        """A pid or text as a ServerID, kept for the next time: programs name the same few again and again."""
        server_id = ServerID.of(dst)
        if len(self._resolved) >= _RESOLVED_MAX:
            self._resolved.clear()
        self._resolved[dst] = server_id
        return server_id

    def _send_when_room(
        self,
        dst: ServerID,
        message_type: int,
        data: bytes,
        fds: Collection[int],
        duplicates_allowed: bool,
        timeout: float,
    ) -> SendStatus:
        backend = self._endpoint.backend
        deadline = time.monotonic() + timeout
        while True:
            backend.flush(min(max(0.0, deadline - time.monotonic()), LONGEST_WAIT))
            try:
                return backend.send(dst, self.server_id, message_type, data, fds, duplicates_allowed)
            except QueueFull:
                if time.monotonic() >= deadline:
                    raise

    def send_all(self, message_type: int, data: bytes = b"", *, duplicates_allowed: bool = True) -> Broadcast:
        """Send to every other living process of the directory that listens to the type's class.

        Returns how many took it (as send() does), with what kept the others: a process that dies meanwhile, or does
        not read, does not stop the rest.  Raises MessageTooLarge, TransportError if the directory cannot be read,
        ForkedContext, ContextClosed; ValueError for a malformed type.
        """
        self._check_usable()
        _check_type(message_type)
        kind, own_pid = message_class(message_type), self.server_id.pid
        delivered, failures = 0, {}
        for process in self._endpoint.presence.processes():
            if process.pid == own_pid or kind not in process.classes:
                continue
            dst = ServerID(process.pid, EVERY_TASK if process.is_ours else 0, unique_id=process.unique_id)
            try:
                self.send(dst, message_type, data, duplicates_allowed=duplicates_allowed)
                delivered += 1
            except (NoSuchProcess, QueueFull, TransportError) as error:
                failures[process.pid] = error
        return Broadcast(delivered, failures)

    def reply(self, message: Message, message_type: int, data: bytes = b"") -> None:
        """Answer a message from its handler; an asker that is gone or does not read is counted, not raised."""
        try:
            self.send(message.src, message_type, data)
        except (NoSuchProcess, QueueFull) as error:
            self._endpoint.drops("an answer nobody takes", str(error), about_it=about(message))

    def request(
        self, dst: Destination, message_type: int, data: bytes, reply_type: int, timeout: float = REPLY_TIMEOUT
    ) -> Message:
        """Send, and dispatch until the destination answers with a message of `reply_type`.

        Messages carry no mark of what they answer: a late answer to an earlier request counts as one to this.
        Descriptors in the answer are the caller's to close.  Raises what send() raises, NoSuchProcess as soon as the
        destination dies, ReplyTimeout after `timeout` seconds.
        """
        self._check_usable()
        dst = ServerID.of(dst)
        answers: list[Message] = []

        def take(message: Message) -> None:
            if not answers and message.src.pid == dst.pid:
                answers.append(message._replace(fds=tuple(os.dup(fd) for fd in message.fds)))

        watched = self._endpoint.presence.watch(dst)
        self.register(reply_type, take)
        try:
            self.send(dst, message_type, data)
            self._dispatch_until(answers, watched, time.monotonic() + timeout)
        finally:
            os.close(watched)
            self.deregister(reply_type, take)
        if not answers:
            raise ReplyTimeout(f"{dst} did not answer {type_name(message_type)} within {timeout:g} seconds")
        return answers[0]

    def _dispatch_until(self, answers: Collection[Message], watched: int, deadline: float) -> None:
        """Dispatch until there is an answer or the deadline has passed; NoSuchProcess if the watched process ends."""
        self.dispatch()
        while not answers and (left := deadline - time.monotonic()) > 0:
            ended = self._endpoint.backend.wait(min(left, LONGEST_WAIT), watched)
            self.dispatch()
            if ended and not answers and not self.dispatch():
                raise NoSuchProcess("the process ended before it answered")

    # Receiving

    def dispatch(self, timeout: float | None = 0) -> int:
        """Run the handlers of what has come in; the number of messages handled.

        Sends on what is queued, too.  If nothing is there, waits at most `timeout` seconds (None: for ever) for a
        message.  A flood is handled in rounds: fileno() stays readable while there is more.
        """
        if self._closed or self._endpoint.forked:
            self._check_usable()
        return self._endpoint.dispatch(timeout)

    def fileno(self) -> int:
        """A descriptor for select, epoll or an event loop: readable when dispatch() has something to do."""
        self._check_usable()
        return self._endpoint.backend.fileno()

    # Who is here

    def processes(self) -> list[Process]:
        """The living processes of the directory, this one included."""
        self._check_usable()
        return list(self._endpoint.presence.processes())

    def is_alive(self, dst: Destination) -> bool:
        """Whether the addressed process lives."""
        self._check_usable()
        return self._endpoint.presence.is_alive(ServerID.of(dst))

    def watch(self, dst: Destination) -> int:
        """A pidfd of the addressed process, readable once it has ended; the caller closes it.

        Raises NoSuchProcess if it does not live.
        """
        self._check_usable()
        return self._endpoint.presence.watch(ServerID.of(dst))

    def add_name(self, name: str) -> None:
        """Let this context be found by `name`, beside any others that have it, until remove_name() or close().

        A forked child does not have its parent's names.  ValueError for what cannot be a name.
        """
        self._check_usable()
        self._endpoint.presence.add_name(name, self.server_id)
        self._names.add(name)

    def remove_name(self, name: str) -> None:
        """Be found by `name` no more; not having it does no harm."""
        self._check_usable()
        if name in self._names:
            self._endpoint.presence.remove_name(name, self.server_id)
            self._names.discard(name)

    def lookup(self, name: str) -> list[ServerID]:
        """The living processes that have the name, those that took it first in front; often one, or none."""
        self._check_usable()
        return self._endpoint.presence.lookup(name)

    def names(self) -> dict[str, list[ServerID]]:
        """All names of living processes, and which ones these are."""
        self._check_usable()
        return self._endpoint.presence.names()

    def clean_up(self) -> list[int]:
        """Remove what dead processes left in the directory; the pids of which there was more than a name."""
        self._check_usable()
        backend = self._endpoint.backend
        return self._endpoint.presence.clean_up(backend.left_behind(), backend.remove)

    def pending(self, dst: Destination) -> int:
        """The number of messages known to wait for the destination's process: it has not taken them yet."""
        self._check_usable()
        return self._endpoint.backend.pending(ServerID.of(dst).pid)

    def statistics(self) -> Statistics:
        """Counters and queue depths of this process's endpoint."""
        self._check_usable()
        endpoint = self._endpoint
        return Statistics(
            endpoint.sent,
            endpoint.sent_bytes,
            endpoint.received,
            endpoint.received_bytes,
            *endpoint.backend.statistics(),
            endpoint.handler_errors,
            dict(endpoint.drops.counts),
        )

    # Life

    def reinit(self) -> None:
        """Give a forked child an endpoint and a server id of its own; handlers stay.

        In a process that has not forked it does nothing.  Raises what the constructor raises.
        """
        if self._closed:
            self._check_usable()
        endpoint = self._endpoint
        if endpoint.forked:
            other = _endpoints.get(endpoint.directory)
            if other is None:
                endpoint.open(endpoint.classes)
                _endpoints[endpoint.directory] = endpoint
            else:
                other.adopt(endpoint)
            for context in endpoint.contexts.values():
                context._names.clear()
                context._take_identity()

    def close(self, timeout: float | None = None) -> int:
        """Leave: the last context of the process waits for what is still queued.

        It waits at most `timeout` seconds, by default `msgd:close timeout`.  Returns the number of messages that could
        not be delivered (they are logged too).  A second call does nothing.
        """
        if self._closed:
            return 0
        endpoint = self._endpoint
        if endpoint.forked:
            self._check_usable()
        self._give_up_names()
        self._closed = True
        del endpoint.contexts[self._task_id]
        if endpoint.contexts:
            endpoint.announce()
            return 0
        del _endpoints[endpoint.directory]
        return endpoint.close(self.config.close_timeout if timeout is None else timeout)

    def _give_up_names(self) -> None:
        """Remove this context's names; one that stays because of a full disk is found dead by the next who looks."""
        try:
            for name in self._names:
                self._endpoint.presence.remove_name(name, self.server_id)
        except TransportError as error:
            logger.error("removing the names of %s: %s", self.server_id, error)
        self._names.clear()

    def _check_usable(self) -> None:
        if self._closed:
            raise ContextClosed("this messaging context has been closed")
        if self._endpoint.forked:
            raise ForkedContext(
                f"this context belongs to pid {self.server_id.pid}, which forked this one; call reinit() in the child"
            )


def _check_type(message_type: int) -> None:
    if not 0 <= message_type <= TYPE_MAX:
        raise ValueError(f"message type {message_type} does not fit 32 bits")


def _too_large(data: bytes, fds: Collection[int], config: Config) -> MessageTooLarge:
    if len(fds) > MAX_FDS:
        return MessageTooLarge(f"{len(fds)} file descriptors in one message; at most {MAX_FDS} go")
    return MessageTooLarge(
        f"{len(data)} bytes of data; msgd:max message size is {config.max_message_size}: raise it or split the data"
    )
