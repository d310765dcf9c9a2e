# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Messaging: a context, with which a program registers handlers, sends, and dispatches what came in.

Rule 1.  Contexts of one process in one directory share its endpoint (endpoint.py).  Dispatch on any of them runs the
handlers of all, so one event loop serves the process.
Rule 2.  A context belongs to one thread at a time.
Rule 3.  A broadcast is one message to each process.  msgd's own processes get it for every task, and the receiver gives
it to those contexts that listen to its class; Samba's processes get it as a message to task 0.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Collection
from types import TracebackType
from typing import Self

from msgd.config import Config
from msgd.errors import (
    ContextClosed,
    ForkedContext,
    MessageTooLarge,
    NoSuchProcess,
    QueueFull,
    ReplyTimeout,
    TransportError,
)
from msgd.linux import LONGEST_WAIT
from msgd.messaging.endpoint import Endpoint, join
from msgd.messaging.handlers import Handler, HandlerTable, about, logger
from msgd.presence import Process
from msgd.results import Broadcast, SendStatus, Statistics
from msgd.wire.header import MAX_FDS, Message
from msgd.wire.message_types import TYPE_MAX, MessageClass, MessageType, message_class, type_name
from msgd.wire.server_id import EVERY_TASK, NONCLUSTER_VNN, TASK_ID_MAX, ServerID

Destination = ServerID | int | str

_RESOLVED_MAX = 1024

REPLY_TIMEOUT = 10.0
"""Seconds request() waits by default; smbcontrol's own default."""


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
        self._endpoint = join(self.config, listens)
        self._task_id = self._endpoint.choose_task_id(task_id)
        self.handlers = HandlerTable()
        self.handlers.defaults[MessageType.PING] = (self._answer_ping,)
        self._resolved: dict[Destination, ServerID] = {}
        self._max_message_size = self.config.max_message_size
        self._take_identity()
        self._endpoint.add(self._task_id, self, self._move_to)
        self._closed = False

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
        self.handlers.add(message_type, handler)

    def deregister(self, message_type: int, handler: Handler | None = None) -> None:
        """Call `handler` (None: any of the type's) no more."""
        self._check_usable()
        self.handlers.remove(message_type, handler)

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
        return self._endpoint.statistics()

    # Life

    def reinit(self) -> None:
        """Give a forked child an endpoint and a server id of its own; handlers stay.

        In a process that has not forked it does nothing.  Raises what the constructor raises.
        """
        if self._closed:
            self._check_usable()
        self._endpoint.reinit()

    def _move_to(self, endpoint: Endpoint) -> None:
        """Take the place that reinit() has given this context; the names were the parent's."""
        self._endpoint = endpoint
        self._names.clear()
        self._take_identity()

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
        return endpoint.remove(self._task_id, self.config.close_timeout if timeout is None else timeout)

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
