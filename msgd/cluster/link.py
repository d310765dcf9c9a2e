# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The link of one endpoint to its node's ctdbd: the connection, who this process is there, and the nodes it knows of.

Rule 1.  A link is in one of three states.  Without a connection, it tries again when its timer expires, later each
time.  With a connection that is being prepared, ctdbd has been asked for the node's number and the node map, and to
register this process's srvids; it has a bounded time to answer.  Once all answers are there, the link is ready.
`trouble` says why it is not.
Rule 2.  Only a ready link sends messages.  Before, and from the end of the connection on, send() raises: ctdbd would
lose what it is given before it knows the other nodes, and it does not say what it had done with the last messages.
Rule 3.  When the connection ends, the messages that wait are given up, counted and logged.  Those that ctdbd had taken
may be lost with it as well, and nobody can tell which.  So a gap is a gap: nothing is repeated, and nothing is doubled.
Rule 4.  fileno() is readable whenever receive() has something to do.  A process that has nothing to do with other nodes
never wakes up for the link, but for the attempts to connect.
"""

from __future__ import annotations

import contextlib
import logging
import random
import select
import time
from collections.abc import Callable

from msgd.cluster.connection import Connection
from msgd.cluster.nodes import NodeMap
from msgd.cluster.places import ctdbd_socket, reason, timeout_of
from msgd.cluster.questions import Answered, Questions
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import MalformedMessage, QueueFull, TransportError
from msgd.linux import TimerFd, new_epoll, new_poll
from msgd.results import SendStatus
from msgd.wire.ctdb import (
    CURRENT_NODE,
    SRVID_BROADCAST,
    SRVID_RECONFIGURE,
    NodeMessage,
    Opcode,
    Reply,
    message_start,
)
from msgd.wire.header import HEADER_SIZE
from msgd.wire.server_id import ServerID

logger = logging.getLogger("msgd")

_RETRY_FIRST, _RETRY_LAST = 0.1, 2.0
"""Seconds until the first attempt to connect again, and the most between two: each time it is doubled."""

_FAR = 1e8
"""Seconds in which the timer does not matter."""

_READ_AHEAD = 64
"""System calls with which a process that only sends looks for an answer: what else they bring is kept in memory."""

_READS = 4
"""System calls in one receive(), so that a flood from other nodes does not keep dispatch from its other work."""


class Link:
    """The link.  `srvids`: what ctdbd gives this process, besides broadcasts and its announcements.

    `take` gets each message that comes.  `on_ready` is called when the link is ready, and `number` is this node's then,
    `on_nodes` when a node map has come, and `on_timer` when wake_in() has asked for it.
    """

    def __init__(
        self,
        config: Config,
        srvids: tuple[int, ...],
        drops: Drops,
        take: Callable[[NodeMessage], None],
        on_ready: Callable[[], None],
        on_nodes: Callable[[], None],
        on_timer: Callable[[], None],
    ) -> None:
        self.number: int | None = None
        self.nodes = NodeMap(lambda: self.ask_if_ready(Opcode.GET_NODEMAP, self.nodes.note), on_nodes)
        self.trouble = "not connected yet"
        """Why the link is not ready; empty if it is."""
        self.connections = 0
        """How often the link has become ready."""
        self._path = ctdbd_socket(config)
        self._timeout = timeout_of(config)
        self._longest = HEADER_SIZE + config.max_message_size
        self._bounds = config.send_queue_messages, config.send_queue_bytes
        self._srvids = [*srvids, SRVID_BROADCAST, SRVID_RECONFIGURE]
        self._drops = drops
        self._take, self._on_ready, self._on_timer = take, on_ready, on_timer
        self._connection: Connection | None = None
        self._questions = Questions(self._send_control)
        self._retry = _RETRY_FIRST
        self._is_logged = False
        """Whether the present trouble has been logged: once, and not with each attempt."""
        self._is_drained = True
        """Whether ctdbd is known to have handled every message."""
        self._read_ahead = 0
        """Reads since the last receive()."""
        with contextlib.ExitStack() as opened:
            self._epoll = opened.enter_context(contextlib.closing(new_epoll()))
            self._timer = opened.enter_context(contextlib.closing(TimerFd()))
            self._epoll.register(self._timer, select.EPOLLIN)
            self._opened = opened.pop_all()

    def fileno(self) -> int:
        """The descriptor that is readable when receive() has something to do."""
        return self._epoll.fileno()

    # The connection

    def connect(self, wait: float = 0.0) -> None:
        """Connect, and wait at most that many seconds until the link is ready.  Raises nothing: see `trouble`."""
        try:
            self._connection = Connection(self._path, self._longest, *self._bounds)
            self._epoll.register(self._connection, select.EPOLLIN)
            self.trouble = "ctdbd has not answered yet"
            self._timer.start(self._timeout)
            self._questions.prepare(self._srvids, self._note_number, self.nodes.note, self._become_ready)
        except OSError as error:
            self._lose(reason(error))
        deadline = time.monotonic() + wait
        while self._connection is not None and self.trouble and (left := deadline - time.monotonic()) > 0:
            self._receive_within(left)

    def _note_number(self, reply: Reply) -> None:
        self.number = reply.status

    def _become_ready(self) -> None:
        self.trouble, self._retry, self._is_logged = "", _RETRY_FIRST, False
        self.connections += 1
        self._timer.acknowledge()
        self._timer.start(_FAR)
        logger.info("connected to ctdbd at %s as node %s of %d", self._path, self.number, len(self.nodes.by_number))
        self._on_ready()

    def _lose(self, why: str) -> None:
        """Note that there is no connection, or no longer, and try again later."""
        connection, self._connection = self._connection, None
        self.trouble = f"not connected to ctdbd at {self._path}: {why}"
        self._questions.forget()
        self.nodes.forget_question()
        if connection is not None:
            self._epoll.unregister(connection)
            connection.close()
            connection.give_up(self._drops, "lost with the connection to ctdbd")
        if not self._is_logged:
            self._is_logged = True
            logger.warning("%s; messages to other nodes fail until it is back", self.trouble)
        self._timer.start(self._retry * random.uniform(0.5, 1.0))  # a thousand processes do not come back at once
        self._retry = min(2 * self._retry, _RETRY_LAST)

    # Sending

    @property
    def queued(self) -> tuple[int, int]:
        """The messages that wait for ctdbd to take them, and the bytes of all that waits."""
        connection = self._connection
        return (0, 0) if connection is None else (connection.messages, connection.bytes)

    @property
    def unsent(self) -> bool:
        """Whether anything waits for ctdbd to take it."""
        return self._connection is not None and bool(self._connection.waiting)

    def queued_for(self, dst: ServerID) -> int:
        """The messages that wait for a process."""
        waiting = () if self._connection is None else self._connection.waiting
        return sum(one.dst is not None and one.dst[:3:2] == dst[:3:2] for one in waiting)

    def check(self, dst: ServerID) -> None:
        """Raise if nothing can be sent to the node: TransportError without ctdbd, NoSuchProcess without the node."""
        if self.trouble:
            raise TransportError(self.trouble)
        self.nodes.check(dst)

    def send(
        self, dst: ServerID, srvid: int, header: bytes, message_type: int, data: bytes, duplicates_allowed: bool
    ) -> SendStatus:
        """Send a message to a srvid at a node, or queue it.  Raises NoSuchProcess, QueueFull, TransportError."""
        self._keep_nodes_current()
        self.check(dst)
        start = message_start(dst.vnn, srvid, len(header) + len(data)) + header
        try:
            connection = self._connection
            assert connection is not None
            if connection.waiting:
                connection.flush()
                if not duplicates_allowed and connection.holds(start, data):
                    return SendStatus.MERGED
                if not connection.has_room(len(start) + len(data)):
                    raise QueueFull(f"ctdbd at {self._path} does not read: {connection.describe()}")
            self._is_drained = False
            if connection.send(start, data, dst, message_type):
                return SendStatus.SENT
            self._watch_for_room(connection)
            return SendStatus.QUEUED
        except OSError as error:
            self._lose(reason(error))
            raise TransportError(self.trouble) from error

    def flush(self) -> None:
        """Send what waits, as far as ctdbd takes it."""
        connection = self._connection
        if connection is None or not connection.waiting:
            return
        try:
            connection.flush()
            self._watch_for_room(connection)
        except OSError as error:
            self._lose(reason(error))

    def watch_for_room(self, poll: select.poll) -> None:
        """Let the poll object report when ctdbd takes more of what waits."""
        if self.unsent:
            assert self._connection is not None
            poll.register(self._connection.fileno(), select.POLLOUT)

    def _watch_for_room(self, connection: Connection) -> None:
        self._epoll.modify(connection, select.EPOLLIN | (select.EPOLLOUT if connection.waiting else 0))

    # Asking ctdbd

    def register(self, srvid: int) -> None:
        """Get what comes for a srvid from now on, and after each new connection.  Raises nothing."""
        self._srvids.append(srvid)
        self._note_srvid(Opcode.REGISTER_SRVID, srvid)

    def deregister(self, srvid: int) -> None:
        """Get it no longer."""
        self._srvids.remove(srvid)
        self._note_srvid(Opcode.DEREGISTER_SRVID, srvid)

    def _note_srvid(self, opcode: Opcode, srvid: int) -> None:
        if self._connection is not None:
            try:
                self._questions.note_srvid(opcode, srvid)
            except OSError as error:
                self._lose(reason(error))

    def _send_control(self, control: bytes) -> None:
        connection = self._connection
        assert connection is not None
        if not connection.send(control):
            self._watch_for_room(connection)

    def ask_if_ready(self, opcode: Opcode, answered: Answered, data: bytes = b"", node: int = CURRENT_NODE) -> bool:
        """Send a control if the link is ready, and return whether it has been sent."""
        if self.trouble:
            return False
        try:
            self._questions.ask(opcode, answered, data, node)
        except OSError as error:
            self._lose(reason(error))
        return not self.trouble

    def _keep_nodes_current(self) -> None:
        """Ask for the node map if it is old.  A process may send and seldom dispatch: look for the answer here, too."""
        if self.trouble or not self.nodes.is_old:
            return
        if not self.nodes.is_asked:
            self.nodes.ask_again()
        elif self._read_ahead < _READ_AHEAD:
            self._read_ahead += 1
            self._read(1)

    def look_at_nodes(self) -> None:
        """Ask for the node map if it is old: a node that cannot recover, in a minority, is announced no change."""
        if not self.trouble and self.nodes.is_old:
            self.nodes.ask_again()

    def wake_in(self, seconds: float) -> None:
        """Have `on_timer` called in so many seconds, if the link is ready then."""
        if not self.trouble:
            self._timer.start(seconds)

    # Receiving

    def receive(self) -> None:
        """Do what there is to do: read, send what waits, try to connect.  Never blocks."""
        self._read_ahead = 0
        for fd, events in self._epoll.poll(0):
            if fd == self._timer.fileno():
                self._timer.acknowledge()
                self._note_timer()
            elif self._connection is not None and fd == self._connection.fileno():
                if events & select.EPOLLOUT:
                    self.flush()
                self._read(_READS)

    def _note_timer(self) -> None:
        if self._connection is None:
            self.connect()
        elif self.trouble:
            self._lose(f"no answer within {self._timeout:g} seconds")
        else:
            self._on_timer()

    def _read(self, reads: int) -> None:
        try:
            for _ in range(reads):
                if self._connection is None:
                    return
                for packet in self._connection.receive():
                    if isinstance(packet, Reply):
                        self._questions.answer(packet)
                    elif packet.srvid == SRVID_RECONFIGURE:
                        self.nodes.ask_again()
                    else:
                        self._take(packet)
        except BlockingIOError:
            pass
        except (OSError, EOFError, MalformedMessage) as error:
            self._lose(reason(error))
        self._count_skipped()

    def _count_skipped(self) -> None:
        if self._connection is not None and self._connection.reader.skipped:
            number, self._connection.reader.skipped = self._connection.reader.skipped, 0
            self._drops("too long", f"from another node, over {self._longest} bytes", number)

    # The end

    def drain(self, timeout: float) -> None:
        """Wait until ctdbd has handled all that it was sent: it answers in order.  At most `timeout` seconds."""
        answered: list[Reply] = []
        deadline = time.monotonic() + timeout
        if self._is_drained or not self.ask_if_ready(Opcode.GET_PNN, answered.append):
            return
        while not answered and not self.trouble and (left := deadline - time.monotonic()) > 0:
            self._receive_within(left)

    def _receive_within(self, seconds: float) -> None:
        poll = new_poll()
        poll.register(self._epoll.fileno(), select.POLLIN)
        poll.poll(seconds * 1000)
        self.receive()

    def give_up(self) -> int:
        """Drop what waits, count and log it, and return the number of messages.  Only close() may follow."""
        connection = self._connection
        if connection is None or not connection.waiting:
            return 0
        self._connection, self.trouble = None, "closed"
        connection.close()
        return connection.give_up(self._drops, "not taken before close")

    def close(self) -> None:
        """Close every descriptor; in a forked child, too: the parent's connection stays as it is."""
        connection, self._connection = self._connection, None
        self.trouble = "closed"
        if connection is not None:
            connection.close()
        self._opened.close()
