# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Messaging: a context, with which a program registers handlers, sends, and dispatches what came in.

Rule 1.  Contexts of one process in one directory share its endpoint (endpoint.py).  Dispatch on any of them runs the
handlers of all, so one event loop serves the process.
Rule 2.  Any thread may call anything.  One thread at a time dispatches, and handlers run in that thread (turn.py).
Rule 3.  A broadcast is one message to each process.  msgd's own processes get it for every task, and the receiver gives
it to those contexts that listen to its class; Samba's processes get it as a message to task 0.
Rule 4.  A timeout of None is for ever, and 0 is not waiting.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Self

from msgd.config import Config
from msgd.errors import (
    ContextClosed,
    MessageTooLarge,
    MsgdError,
    NoSuchProcess,
    QueueFull,
)
from msgd.messaging import process
from msgd.messaging.arguments import Data, Destination, Type, data_bytes, message_type_number
from msgd.messaging.asking import Asking
from msgd.messaging.border import refusals_documented
from msgd.messaging.broadcasting import broadcast, broadcast_many
from msgd.messaging.elsewhere import Elsewhere
from msgd.messaging.endpoint import Endpoint
from msgd.messaging.handlers import HandlerTable, about
from msgd.messaging.observer import Observer
from msgd.messaging.registering import Registering
from msgd.messaging.waiting import send_again
from msgd.messaging.who_is_here import WhoIsHere
from msgd.results import Broadcast, SendStatus, Statistics
from msgd.wire.header import MAX_FDS, Message
from msgd.wire.message_types import TYPE_MAX, MessageClass, MessageType
from msgd.wire.refusal import FIRST_REQUEST_TASK, MONITOR, NOT_HANDLED
from msgd.wire.server_id import NONCLUSTER_VNN, ServerID

_MERGED = SendStatus.MERGED

_KNOWN_TASKS_MAX = 1024

_RESOLVED_MAX = 1024
"""Destinations given as pids or as text that a context remembers; the table is emptied when it is full."""


class Messaging(Registering, WhoIsHere, Asking, Elsewhere):
    """A messaging context: registers handlers, sends, and dispatches what came in.

    A context manager; leaving it closes the context.  `config` defaults to the configured smb.conf.  Several contexts
    of one process in one directory share its endpoint and differ in `task_id` (default: the lowest that is free).
    `listens`: the classes of broadcasts that this context wants; what is sent to it alone comes in any case.
    `observer` sees what goes through the endpoint, of all its contexts.

    Raises ConfigError, UnsafeDirectory, TransportError, BackendUnavailable.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        task_id: int | None = None,
        listens: MessageClass = MessageClass.ALL,
        observer: Observer | None = None,
    ) -> None:
        if task_id is not None and not 0 <= task_id < FIRST_REQUEST_TASK:
            raise ValueError(f"task id {task_id} is not one: they go from 0 to {FIRST_REQUEST_TASK - 1}")
        self.config = Config.load() if config is None else config
        self.listens = listens
        self.handlers = HandlerTable()
        self.handlers.defaults[MessageType.PING] = (self._answer_ping,)
        self.handlers.defaults[NOT_HANDLED] = (self._note_refusal,)
        if self.config.monitor:
            self.handlers.defaults[MONITOR] = (self._let_monitor,)
        self.known_tasks: set[ServerID] = set()
        """Addresses whose tasks have been seen to exist: at most _KNOWN_TASKS_MAX, none once closed or forked."""
        self._closed = False
        self._names: set[str] = set()
        self._resolved: dict[Destination, ServerID] = {}
        self._max_message_size = self.config.max_message_size
        self._endpoint, self._task_id = process.join(self.config, listens, task_id, self, self._move_to)
        if observer is not None:
            self._endpoint.observe(observer)
        self._take_identity()

    def _take_identity(self) -> None:
        """Take the address from the endpoint: it is new, or the number of this node is."""
        presence = self._endpoint.presence
        self.server_id = ServerID(presence.pid, self._task_id, presence.vnn, presence.unique_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._endpoint.forked:
            self.close()

    def __copy__(self) -> Self:
        raise TypeError("a messaging context cannot be copied; open another one")

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a messaging context cannot be pickled; open one in the other process")

    # Handlers of its own

    def _answer_ping(self, message: Message) -> None:
        self.reply(message, MessageType.PONG, message.data)

    def _note_refusal(self, message: Message) -> None:
        """A task that we have sent to has gone: the next send() to it is to raise."""
        self.known_tasks.clear()

    def _let_monitor(self, message: Message) -> None:
        from msgd.messaging.monitored import Monitored  # not needed before anybody watches

        monitored = self._endpoint.monitored or Monitored(self._endpoint)
        monitored.add(message.src.pid, message.data)

    # Sending

    def send(
        self,
        dst: Destination,
        message_type: Type,
        data: Data = b"",
        *,
        fds: Collection[int] = (),
        duplicates_allowed: bool = True,
        timeout: float | None = 0,
    ) -> SendStatus:
        """Send a message to a ServerID, a pid, or server-id text.

        Returns at once.  What the receiver has no room for is queued in this process, in order, and leaves from
        dispatch or close(); with tdb it waits in the file.  `timeout`: seconds to wait for room when that queue is at
        its bound.  A program without threads receives nothing meanwhile, so two processes that are full towards each
        other wait until the timeout.
        `fds`: at most 127 open descriptors, duplicated into the receiver.  With duplicates_allowed=False, a message
        that is identical to one still pending is merged with it.

        Raises NoSuchProcess, MessageTooLarge, QueueFull, TransportError, ForkedContext, ContextClosed; ValueError for a
        malformed destination or type, TypeError for data that is no buffer.
        If it raises one of these, nothing was sent.
        """
        plain = self._endpoint.plain_sender
        if plain is not None and not (fds or self._closed) and duplicates_allowed:
            sent = plain(
                dst, self.server_id, message_type, data, self.known_tasks
            )  # it declines what needs the lines below
            if sent is not None:
                return sent
        if type(dst) is not ServerID:
            dst = self._resolved.get(dst) or self._resolve(dst)
        if type(data) is not bytes:
            data = data_bytes(data)
        if type(message_type) is str or not 0 <= message_type <= TYPE_MAX:  # type: ignore[operator]
            message_type = message_type_number(message_type)
        endpoint = self._endpoint
        if not fds and endpoint.observer is None and len(data) <= self._max_message_size:
            try:  # what _send() does, without its call: every message passes here
                with endpoint.lock:
                    if dst in self.known_tasks:  # which is empty once the context is closed or forked
                        status = endpoint.transmit(dst, self.server_id, message_type, data, (), duplicates_allowed)  # type: ignore[arg-type]
                        if status is not _MERGED:
                            endpoint.sent += 1
                            endpoint.sent_bytes += len(data)
                        return status
            except (MsgdError, struct.error, OverflowError, OSError, MemoryError) as error:
                assert isinstance(message_type, int)  # by now
                return send_again(
                    endpoint, error, dst, self.server_id, message_type, data, (), duplicates_allowed, timeout
                )
        return self._send(dst, self.server_id, message_type, data, fds, duplicates_allowed, timeout)  # type: ignore[arg-type]

    def _send(
        self,
        dst: ServerID,
        src: ServerID,
        message_type: int,
        data: bytes,
        fds: Collection[int],
        duplicates_allowed: bool,
        timeout: float | None,
    ) -> SendStatus:
        """Send a message whose type and data have been checked; `src` is its source."""
        endpoint = self._endpoint
        try:
            if dst.vnn != NONCLUSTER_VNN:
                endpoint.check_node(dst)
            if len(data) > self._max_message_size or len(fds) > MAX_FDS:
                raise _too_large(data, fds, self.config)
            with endpoint.lock:
                if self._closed or endpoint.closed or endpoint.forked:
                    self._check_usable()
                if dst.task_id < FIRST_REQUEST_TASK and dst not in self.known_tasks:
                    endpoint.check_task(dst)
                    if len(self.known_tasks) >= _KNOWN_TASKS_MAX:
                        self.known_tasks.clear()
                    self.known_tasks.add(dst)
                return endpoint.send(dst, src, message_type, data, fds, duplicates_allowed)
        except (MsgdError, struct.error, OverflowError, OSError, MemoryError) as error:
            return send_again(endpoint, error, dst, src, message_type, data, fds, duplicates_allowed, timeout)

    def _resolve(self, dst: Destination) -> ServerID:
        """A pid or text as a ServerID, kept for the next time: programs name the same few again and again."""
        server_id = ServerID.of(dst)
        if len(self._resolved) >= _RESOLVED_MAX:
            self._resolved.clear()
        self._resolved[dst] = server_id
        return server_id

    @refusals_documented
    def send_all(self, message_type: Type, data: Data = b"", *, duplicates_allowed: bool = True) -> Broadcast:
        """Send to every other living process of the directory that listens to the type's class; in a cluster, to those
        of all nodes.

        Returns how many took it (as send() does), with what kept the others: a process that dies meanwhile, or does
        not read, does not stop the rest.  Raises MessageTooLarge, TransportError if the directory cannot be read,
        ForkedContext, ContextClosed; ValueError for a malformed type.
        """
        number, data = message_type_number(message_type), data_bytes(data)
        if len(data) > self._max_message_size:
            raise _too_large(data, (), self.config)
        return broadcast(self._endpoint, self._others(number), self.server_id, number, data, duplicates_allowed)

    def send_all_many(self, messages: Iterable[tuple[Type, Data]]) -> Broadcast:
        """Send several messages to everybody, as so many calls of send_all() do, but process by process.

        A process is woken up once for all of them, and the sender is not preempted by each receiver of each message.
        Returns how many processes took all that they listen to, and what kept the others; those may have taken some.
        Raises what send_all() does, before anything is sent.
        """
        by_process: dict[ServerID, list[tuple[int, bytes]]] = {}
        everything: list[tuple[int, bytes]] = []
        for message_type, data in messages:
            number, packed = message_type_number(message_type), data_bytes(data)
            if len(packed) > self._max_message_size:
                raise _too_large(packed, (), self.config)
            everything.append((number, packed))
            for dst in self._others(number):
                by_process.setdefault(dst, []).append((number, packed))
        return broadcast_many(self._endpoint, self.server_id, by_process, everything)

    def reply(self, message: Message, message_type: Type, data: Data = b"", *, fds: Collection[int] = ()) -> None:
        """Answer a message from its handler; an asker that is gone or does not read is counted, not raised."""
        try:
            self.send(message.src, message_type, data, fds=fds)
        except (NoSuchProcess, QueueFull) as error:
            self._endpoint.drops("an answer nobody takes", str(error), about_it=about(message))

    # Receiving

    def dispatch(self, timeout: float | None = 0) -> int:
        """Run the handlers of what has come in.  Returns the number of messages handled.

        Also sends what is queued.  If nothing is there, waits at most `timeout` seconds (None: for ever) for a
        message.  A flood is handled in rounds: fileno() stays readable while there is more.

        Raises AlreadyDispatching if another thread is at it.
        """
        if self._closed or self._endpoint.forked:
            self._check_usable()
        return self._endpoint.dispatch(timeout)

    def fileno(self) -> int:
        """A descriptor for select, epoll or an event loop: readable when dispatch() has something to do."""
        with self._endpoint.lock:
            self._check_usable()
            return self._endpoint.backend.fileno()

    @refusals_documented
    def start(self) -> Self:
        """Dispatch in a background thread from now on: for programs without an event loop.

        It ends with stop(), close(), the interpreter, and in a forked child.  Raises BackendUnavailable for the
        messaging type tdb, whose signals need the main thread.
        """
        self._check_usable()
        self._endpoint.start()
        return self

    def stop(self, timeout: float | None = None) -> None:
        """End the background thread after the handler that is running; waits for that at most `timeout` seconds."""
        self._check_usable()
        self._endpoint.background.stop(timeout)

    def statistics(self) -> Statistics:
        """Counters and queue depths of this process's endpoint."""
        self._check_usable()
        return self._endpoint.statistics()

    # Life

    @refusals_documented
    def reinit(self) -> None:
        """Give a forked child an endpoint and a server id of its own; handlers stay.

        In a process that has not forked it does nothing.  Raises what the constructor raises.
        """
        if self._closed:
            self._check_usable()
        process.reinit(self._endpoint)

    def _move_to(self, endpoint: Endpoint) -> None:
        """Take the place that reinit() has given this context; the names were the parent's."""
        self._endpoint = endpoint
        self._names.clear()
        self._take_identity()

    @refusals_documented
    def close(self, timeout: float | None = None) -> int:
        """Leave: the last context of the process waits for what is still queued.

        It waits at most `timeout` seconds, by default `msgd:close timeout`.  Returns the number of messages that could
        not be delivered (they are logged too).  A second call does nothing.  Raises ForkedContext, TransportError.
        """
        endpoint = self._endpoint
        with endpoint.lock:
            if self._closed:
                return 0
            if endpoint.forked:
                self._check_usable()
            self._closed = True
            self.known_tasks.clear()
            self._give_up_names()
        return process.leave(endpoint, self._task_id, self.config.close_timeout if timeout is None else timeout)

    def _check_usable(self) -> None:
        if self._closed:
            raise ContextClosed("this messaging context has been closed")
        self._endpoint.check_usable()


def _too_large(data: bytes, fds: Collection[int], config: Config) -> MessageTooLarge:
    if len(fds) > MAX_FDS:
        return MessageTooLarge(f"{len(fds)} file descriptors in one message; at most {MAX_FDS} go")
    return MessageTooLarge(
        f"{len(data)} bytes of data; msgd:max message size is {config.max_message_size}: raise it or split the data"
    )
