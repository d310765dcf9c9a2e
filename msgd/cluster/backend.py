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
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence

from msgd.backends.base import Backend, BackendStatistics, Deliver, PlainSender
from msgd.cluster.asking import is_registered
from msgd.cluster.link import Link
from msgd.cluster.places import timeout_of
from msgd.cluster.watching import Watches
from msgd.config import Config
from msgd.drops import Drops
from msgd.errors import MalformedMessage, MessageTooLarge, MsgdError, NoSuchProcess, TransportError
from msgd.presence import Presence
from msgd.results import NodeTraffic, SendStatus
from msgd.wire.ctdb import SRVID_BROADCAST, SRVID_PUBLICATIONS, Node, NodeMessage, Opcode, Reply
from msgd.wire.header import Message, MessageDecoder, pack_header
from msgd.wire.message_types import MessageClass, message_class
from msgd.wire.server_id import EVERY_TASK, NONCLUSTER_VNN, ServerID
from msgd.wire.stream import move_all

_WAIT_AT_OPEN = 2.0
"""Seconds that opening waits for ctdbd at most, if it is there and slow; the link goes on by itself."""

_DRAIN = 1.0
"""Seconds that closing waits for ctdbd to handle the last messages."""

_PASSED_OVER = 8
"""Rounds in a row in which local messages have come after which the link is looked at in any case."""

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
        self._plain: PlainSender | None = None
        self._passed_over = 0
        """Rounds in which the link was passed over, since local messages had come."""
        self._sent, self._received = Counter[int](), Counter[int]()
        """The messages to and from each other node."""
        self._tasks: dict[int, int] = {}
        """By srvid that a context listens to: its task id."""
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
            self._note_number()
            self._on_number()

    def _note_number(self) -> None:
        """The compiled twin of the local send() declines every destination on another node."""
        if self._plain is not None:
            self._plain.node = self.presence.vnn

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
        status = self._link.send(dst, dst.pid, header, message_type, data, duplicates_allowed)
        self._sent[dst.vnn] += status is not SendStatus.MERGED
        return status

    def broadcast(
        self,
        src: ServerID,
        message_type: int,
        data: bytes,
        srvid: int | None = None,
        to: Collection[int] | None = None,
    ) -> dict[int, MsgdError | None]:
        """Send to all processes that are registered for the srvid, on each other node that is connected.

        By node: None, or why it was not sent.  `srvid` None: publications go to their subscribers, other messages to
        everybody.  `to`: the numbers of the nodes (None: all the others).
        """
        if srvid is None:
            is_publication = message_class(message_type) is MessageClass.PUBSUB
            srvid = SRVID_PUBLICATIONS if is_publication else SRVID_BROADCAST
        header = pack_header(_NOBODY, src, message_type)
        nodes: dict[int, MsgdError | None] = {}
        for number in self.others() if to is None else to:
            try:
                self._link.send(ServerID(1, 0, number), srvid, header, message_type, data, True)
                self._sent[number] += 1
                nodes[number] = None
            except MsgdError as error:
                nodes[number] = error
        return nodes

    def others(self) -> list[int]:
        """The numbers of the other nodes that are connected, as far as they are known."""
        nodes = tuple(self._link.nodes.by_number.values())
        return [one.number for one in nodes if one.is_connected and one.number != self._link.number]

    def send_around(self, src: ServerID, message_type: int, data: bytes) -> None:
        """Send to this process itself, through ctdbd, behind what ctdbd has for it already.  Raises TransportError."""
        if self._link.number is None:
            raise TransportError(self._link.trouble)
        dst = ServerID(self.presence.pid, src.task_id, self._link.number, self.presence.unique_id)
        header = pack_header(dst, src, message_type)
        self._link.send(dst, dst.pid, header, message_type, data, True)

    def ask_whether_there(self, number: int, note: Callable[[], None]) -> bool:
        """Have `note` called when the node's ctdbd has answered: what it had been given before has come by then.

        Returns False if nobody can be asked.
        """

        def answered(reply: Reply) -> None:
            note()

        return self._link.ask_if_ready(Opcode.GET_PNN, answered, node=number)

    def listen(self, srvid: int, task_id: int) -> None:
        """Give a context what comes for a srvid, whatever classes it listens to."""
        self._tasks[srvid] = task_id
        self._link.register(srvid)

    def listen_no_more(self, srvid: int) -> None:
        """The context is not interested any more."""
        del self._tasks[srvid]
        self._link.deregister(srvid)

    def look_at_nodes(self) -> None:
        """Have the map of the nodes read again if it is old; the answer comes by dispatch."""
        self._link.look_at_nodes()

    @property
    def trouble(self) -> str:
        """Why no other node can be reached; empty if they can."""
        return self._link.trouble

    @property
    def connections(self) -> int:
        """How often ctdbd has been connected: another number means that messages may have been lost."""
        return self._link.connections

    def plain_sender(self, lock: threading.RLock) -> PlainSender | None:
        self._plain = self._local.plain_sender(lock)
        self._note_number()
        return self._plain

    def send_batch(self, dst: ServerID, src: ServerID, messages: Sequence[tuple[int, bytes]]) -> bool:
        return self.presence.is_here(dst) and self._local.send_batch(dst, src, messages)

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
        arrived = self._arrived
        self._is_receiving = True
        try:
            self._local.receive(arrived.append)
            self._passed_over += 1
            if not arrived or self._passed_over >= _PASSED_OVER:
                self._passed_over = 0
                self._link.receive()  # one system call more, which most rounds of local messages do without
        finally:
            self._is_receiving = False
            move_all(arrived, deliver)

    def _take(self, packet: NodeMessage) -> None:
        """Keep a message that has come, unless it is none of ours."""
        try:
            message = self._decoder.decode(packet.data)
            if message.src.vnn == NONCLUSTER_VNN:
                raise MalformedMessage(f"a message from {message.src}, which names no node")
        except MalformedMessage as error:
            self.drops("malformed or forged", f"through ctdbd: {error}")
            return
        if packet.srvid in self._tasks:
            message = message._replace(
                dst=ServerID(self.presence.pid, self._tasks[packet.srvid], self.presence.vnn, self.presence.unique_id)
            )
        elif packet.srvid == SRVID_BROADCAST:
            if self._is_own(message.src) or message_class(message.type) not in self.presence.classes:
                return
            message = message._replace(
                dst=ServerID(self.presence.pid, EVERY_TASK, self.presence.vnn, self.presence.unique_id)
            )
        if message.src.vnn in self._link.nodes.by_number:
            self._received[message.src.vnn] += 1
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

    def traffic(self) -> dict[int, NodeTraffic]:
        """The messages to and from each other node, by its number."""
        others = self._link.nodes.by_number.keys() - {self._link.number}
        return {number: NodeTraffic(self._sent[number], self._received[number]) for number in sorted(others)}

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
