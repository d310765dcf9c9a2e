# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The endpoint of a process in a cluster: its local transport, and the link to ctdbd for what is on other nodes.

Rule 1.  To the endpoint above, it is a backend like any other.  A process that is not clustered has the local transport
alone in its place, and pays nothing.
Rule 2.  The node in the destination decides.  This node's number, or none, goes to the local transport, and never
through ctdbd; any other goes to ctdbd, and through no process of ours.
Rule 3.  What comes from ctdbd passes the same delivery as what comes from here: pid, unique id and task are checked.
Rule 4.  Without ctdbd, everything local works as always, and what is for other nodes fails with a TransportError that
says why.  This node's number stays what it was; it is unknown until ctdbd has been there once.
"""

from __future__ import annotations

import select
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping

from msgd.backends.base import Backend, BackendStatistics, Deliver, PlainSender
from msgd.cluster.asking import is_registered
from msgd.cluster.link import Link
from msgd.cluster.places import timeout_of
from msgd.cluster.watching import Watches
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import MalformedMessage, MessageTooLarge, MsgdError, NoSuchProcess
from msgd.presence import Presence
from msgd.results import SendStatus
from msgd.wire.ctdb import SRVID_BROADCAST, Node, NodeMessage
from msgd.wire.header import Message, MessageDecoder, pack_header
from msgd.wire.message_types import message_class
from msgd.wire.server_id import EVERY_TASK, NONCLUSTER_VNN, ServerID
from msgd.wire.stream import move_all

_WAIT_AT_OPEN = 2.0
"""Seconds that opening waits for ctdbd at most, if it is there and slow; the link goes on by itself."""

_DRAIN = 1.0
"""Seconds that closing waits for ctdbd to handle the last messages."""

_NOBODY = ServerID(0, 0, 0, 0)
"""The destination in the header of a broadcast, as Samba has it."""


class _Unsent:
    """Whether anything waits here or for ctdbd; its length is that of a truth."""

    def __init__(self, local: Backend, link: Link) -> None:
        self._local, self._link = local, link

    def __len__(self) -> int:
        return bool(self._local.unsent) or self._link.unsent


class ClusteredBackend(Backend):
    """The local transport and the link.  `on_number` is called when this node's number is known, or another one."""

    def __init__(self, local: Backend, on_number: Callable[[], None]) -> None:
        super().__init__(local.config, local.presence, local.drops)
        self._local = local
        self._on_number = on_number
        self._arrived: deque[Message] = deque()
        self._is_receiving = False
        self._decoder = MessageDecoder()
        srvids = (local.presence.pid, local.presence.unique_id)
        self._link = Link(
            self.config, srvids, self.drops, self._take, self._note_ready, self._note_nodes, self._note_timer
        )
        self._watches = Watches(self._link)
        self.gathers, self.gathered = local.gathers, local.gathered
        self.spinner = local.spinner
        self.unsent = _Unsent(local, self._link)
        self.begin_gathering = local.begin_gathering  # type: ignore[method-assign]
        self.end_gathering = local.end_gathering  # type: ignore[method-assign]
        self.wait = local.wait  # type: ignore[method-assign]
        try:
            local.watch_also(self._link.fileno())
            self._link.connect(min(_WAIT_AT_OPEN, timeout_of(self.config) / 2))
        except BaseException:
            self._link.close()
            raise

    def fileno(self) -> int:
        return self._local.fileno()

    def _note_ready(self) -> None:
        number = self._link.number
        self._watches.start()
        if number is not None and number != self.presence.vnn:
            self.presence.vnn = number
            self._on_number()

    def _note_nodes(self) -> None:
        self._watches.note_nodes()

    def _note_timer(self) -> None:
        self._watches.check()

    # Sending

    def send(
        self,
        dst: ServerID,
        src: ServerID,
        message_type: int,
        data: bytes,
        fds: Collection[int] = (),
        duplicates_allowed: bool = True,
    ) -> SendStatus:
        if dst.vnn == NONCLUSTER_VNN or dst.vnn == self.presence.vnn or self.presence.is_here(dst):
            return self._local.send(dst, src, message_type, data, fds, duplicates_allowed)
        if fds:
            raise MessageTooLarge(f"{dst} is on another node, and file descriptors go to processes of this one only")
        header = pack_header(dst, src, message_type)
        return self._link.send(dst, dst.pid, header, message_type, data, duplicates_allowed)

    def broadcast(self, src: ServerID, message_type: int, data: bytes) -> dict[int, MsgdError | None]:
        """Send to all processes of each other node that is connected.  By node: None, or why it was not sent."""
        header = pack_header(_NOBODY, src, message_type)
        nodes: dict[int, MsgdError | None] = {}
        for node in tuple(self._link.nodes.by_number.values()):
            if node.number != self._link.number and node.is_connected:
                dst = ServerID(1, 0, node.number)
                try:
                    self._link.send(dst, SRVID_BROADCAST, header, message_type, data, True)
                    nodes[node.number] = None
                except MsgdError as error:
                    nodes[node.number] = error
        return nodes

    def plain_sender(self, lock: threading.RLock) -> PlainSender | None:
        return self._local.plain_sender(lock)  # it declines every destination that names a node

    def poll_for_room(self) -> select.poll:
        poll = self._local.poll_for_room()
        self._link.watch_for_room(poll)
        return poll

    def flush(self, timeout: float = 0.0) -> None:
        if self._link.unsent:
            if timeout:
                self.poll_for_room().poll(timeout * 1000)
                timeout = 0.0
            self._link.flush()
        self._local.flush(timeout)

    # Receiving

    def wake(self) -> None:
        self._local.wake()

    def take_wake(self) -> bool:
        return self._local.take_wake()

    def receive(self, deliver: Deliver) -> None:
        self._local.receive(deliver)
        self._is_receiving = True
        try:
            self._link.receive()
        finally:
            self._is_receiving = False
            move_all(self._arrived, deliver)

    def _take(self, packet: NodeMessage) -> None:
        """Keep a message that has come, unless it is none of ours."""
        try:
            message = self._decoder.decode(packet.data)
            if message.src.vnn == NONCLUSTER_VNN:
                raise MalformedMessage(f"a message from {message.src}, which names no node")
        except MalformedMessage as error:
            self.drops("malformed or forged", f"through ctdbd: {error}")
            return
        if packet.srvid == SRVID_BROADCAST:
            if self._is_own(message.src) or message_class(message.type) not in self.presence.classes:
                return
            message = message._replace(
                dst=ServerID(self.presence.pid, EVERY_TASK, self.presence.vnn, self.presence.unique_id)
            )
        self._arrived.append(message)
        if not self._is_receiving:
            self.wake()

    def _is_own(self, src: ServerID) -> bool:
        """Whether this process has sent it: ctdbd gives Samba's broadcasts to all, the sender included."""
        return src.pid == self.presence.pid and self.presence.is_here(src)

    # Processes and nodes

    def check_alive(self, dst: ServerID) -> None:
        """Raise NoSuchProcess unless a process of another node lives, TransportError if there is no answer.

        It asks that node, and waits; it is to be called without the lock.
        """
        self._link.check(dst)
        if not is_registered(self.config, dst):
            raise NoSuchProcess(f"no process {dst}: node {dst.vnn} has none")

    def watch(self, dst: ServerID) -> int:
        """See Watches.add()."""
        return self._watches.add(dst)

    @property
    def nodes(self) -> Mapping[int, Node]:
        """The nodes of the cluster, by number, as far as they are known."""
        return self._link.nodes.by_number

    # Statistics

    def statistics(self) -> BackendStatistics:
        messages, size, blocked = self._local.statistics()
        waiting, waiting_size = self._link.queued
        return BackendStatistics(messages + waiting, size + waiting_size, blocked + bool(waiting))

    def pending(self, pid: int) -> int:
        return self._local.pending(pid)

    def pending_elsewhere(self, dst: ServerID) -> int:
        """The number of messages that wait in this process for one of another node."""
        return self._link.queued_for(dst)

    # The dead, and the end

    def left_behind(self) -> Collection[int]:
        return self._local.left_behind()

    def remove(self, pid: int) -> None:
        self._local.remove(pid)

    def give_up(self) -> int:
        return self._local.give_up() + self._link.give_up()

    def close(self) -> None:
        try:
            self._link.drain(_DRAIN)
        finally:
            self._close_link()
            if self._arrived:
                self.drops("not handled before close", "from other nodes", len(self._arrived))
                self._arrived.clear()
            self._local.close()

    def abandon(self) -> None:
        self._close_link()
        self._arrived.clear()
        self._local.abandon()

    def _close_link(self) -> None:
        self._watches.close()
        self._link.close()


def open_clustered(
    local: Callable[[Config, Presence, Drops], Backend],
    config: Config,
    presence: Presence,
    drops: Drops,
    on_number: Callable[[], None],
) -> ClusteredBackend:
    """Open the local transport, and the link behind it.  Raises what the transport raises."""
    backend = local(config, presence, drops)
    try:
        return ClusteredBackend(backend, on_number)
    except BaseException:
        backend.close()
        raise
