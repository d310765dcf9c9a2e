# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Topics in a cluster: what a hub knows of the publishers and subscribers of other nodes.

The table of publishers is a file of one node.  What follows makes up for that, so that a publication of another node
comes, or is told as a gap, and an acknowledged one knows whom to wait for.

Rule 1.  A publication goes to each other node as one packet for those that subscribe there (SRVID_PUBLICATIONS).
Rule 2.  A subscriber keeps a mirror of each table of another node that it hears of: the numbers that have been counted
    there, and what of them it has handled.  Progress works on a mirror as on the table itself: a number that is not the
    next one is a gap, and what has been counted and does not come within two looks is overdue.
Rule 3.  The numbers come in NUMBERS, which one process of a node sends to the others: after a publication, and when
    somebody asks, at most once a second.  Words in the table say whose turn that is, so nobody is elected, and one that
    hangs holds up nobody.
Rule 4.  A subscriber says HELLO to the other nodes when it begins, when ctdbd or a node is back, and while it hears
    publications of a table of which it has no numbers.  The first numbers of a table are where it begins.  What had
    been counted before, it has not missed; NUMBERS say for how long nothing has been counted, and if that is not longer
    than the time since the subscriber began, there is a doubt, and so a gap.
Rule 5.  A node that is no longer connected is a gap, at once: what is published there does not come.  When it is back,
    the numbers tell how much that was.
Rule 6.  An acknowledged publication first asks each node who subscribes there (ROLL).  The process with the lowest pid
    answers for all, from the node's directory; if it does not, another one answers at its next look.  Each of them is
    then asked by a request of its own.  Who subscribes in between is not asked, and is told a gap.
Rule 7.  Nobody can tell a node without subscribers from one that does not answer.  So a node that has not answered a
    roll, and from which nothing was ever heard, is asked no more until a HELLO comes from there.  Its ctdbd is asked
    in place of it, whose answer arrives behind each HELLO that was before it.

Rejected: telling the numbers with each publication (they are in it already, and the last one may be the one that is
lost); a process of a node that is elected (one that is stopped would hold up everybody); a list of all subscribers of
the cluster in each of them (its messages grow with the square of the processes).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager

from msgd.cluster.backend import ClusteredBackend
from msgd.errors import ContextClosed, MalformedMessage, MsgdError, NoSuchProcess, TransportError
from msgd.messaging.context import Messaging
from msgd.messaging.handlers import about
from msgd.messaging.requests import PendingRequest
from msgd.pubsub.events import Gap, GapReason
from msgd.pubsub.progress import Progress
from msgd.pubsub.table import NOTHING, SLOTS, Table
from msgd.wire.ctdb import SRVID_HUBS, SRVID_PUBLICATIONS
from msgd.wire.header import Message
from msgd.wire.pubsub import (
    CHECK,
    HELLO,
    MEMBERS,
    NUMBERS,
    PUBLISH,
    ROLL,
    Numbers,
    Publish,
    pack_members,
    pack_numbers,
    unpack_members,
    unpack_numbers,
)
from msgd.wire.server_id import EVERY_TASK, ServerID

ROLL_TIMEOUT = 3.0
"""Seconds that a node has for its answer to a roll: enough for two looks of its processes."""

_MIRRORS = 256
"""Tables of other nodes that are followed at most: a node has one for each service, and another one after a reboot."""

_SUBSCRIBERS = 4096
"""Subscribers of a node that are remembered at most, until it has answered a roll."""

_ROLLS = 64
"""Rolls for whose answer by another process this one looks out at most."""


class Mirror:
    """What is known here of a table of another node, in the place of the table itself."""

    def __init__(self, table: int, node: int) -> None:
        self.id = table
        self.node = node
        self._numbers = bytearray(NOTHING)
        self._words = memoryview(self._numbers).cast("Q")
        self._first: dict[int, int] | None = {}
        """Until its numbers have come: by slot, the first publication that was heard."""
        self.progress = Progress(self)
        self.progress.begin()

    def snapshot(self) -> bytes:
        """The slots as they were last told."""
        return bytes(self._numbers)

    def number(self, slot: int) -> int:
        """The last number of a slot that was told."""
        return self._words[slot]

    @property
    def is_known(self) -> bool:
        """Whether its numbers have come."""
        return self._first is None

    def expect(self, publication: Publish) -> Gap | None:
        """The gap in front of a publication, if there is one."""
        if self._first is not None and publication.slot not in self._first:
            self._first[publication.slot] = publication.number
            return None
        return self.progress.expect(publication)

    def take(self, numbers: Numbers, since: float) -> Gap | None:
        """Its numbers have come.  `since`: from when on nothing may be missed, on the monotonic clock (Rule 4)."""
        for slot, number in numbers.by_slot.items():
            self._words[slot] = max(self._words[slot], number)
        if self._first is None:
            return None
        first, self._first = self._first, None
        self.progress.assume({slot: number for slot, number in numbers.by_slot.items() if slot not in first})
        heard_all = all(first.get(slot) == 1 for slot in numbers.by_slot)
        return None if heard_all or numbers.quiet >= time.monotonic() - since else Gap(GapReason.BEFORE)


class OtherNodes:
    """The other nodes of the cluster, for one hub.  `table` gives its own table, and `tell` gets the gaps that show."""

    def __init__(
        self,
        messaging: Messaging,
        cluster: ClusteredBackend,
        table: Callable[[], Table],
        tell: Callable[[Gap], None],
    ) -> None:
        self._messaging, self._cluster, self._table, self._tell_gap = messaging, cluster, table, tell
        self._endpoint = messaging._endpoint
        self._mirrors: dict[int, Mirror] = {}
        self._subscribers: dict[int, dict[ServerID, None]] = {}
        """By node, who subscribes there, as it was last heard, the oldest first."""
        self._silent: set[int] = set()
        """Nodes that have not answered a roll (Rule 7)."""
        self._rolls: dict[ServerID, tuple[Message, int]] = {}
        """Rolls that another process of this node is to answer, and when they came."""
        self._connections = 0
        self._connected: frozenset[int] = frozenset()
        self._is_subscribed = False
        self._since = 0.0
        self.roll_timeout = ROLL_TIMEOUT
        self.last_heard = 0.0
        """When a publication of another node was last heard, on the monotonic clock."""
        for message_type, handler in ((HELLO, self._on_hello), (ROLL, self._on_roll), (NUMBERS, self._on_numbers)):
            messaging.register(message_type, handler)
        self._listen(SRVID_HUBS)

    def _listen(self, srvid: int) -> None:
        with self._endpoint.lock:
            self._cluster.listen(srvid, self._messaging.server_id.task_id)

    def begin(self, since: float) -> None:
        """This process subscribes from now on; it may not miss what was published since then (monotonic clock)."""
        self._mirrors = {}
        self._is_subscribed, self._since = True, since
        self._listen(SRVID_PUBLICATIONS)
        self._send(HELLO, b"", SRVID_HUBS)

    def end(self) -> None:
        """It subscribes no more."""
        self._is_subscribed, self._mirrors = False, {}
        with self._endpoint.lock:
            self._cluster.listen_no_more(SRVID_PUBLICATIONS)

    def close(self) -> None:
        """The hub closes, and its endpoint may stay."""
        if self._is_subscribed:
            self.end()
        with self._endpoint.lock:
            self._cluster.listen_no_more(SRVID_HUBS)

    def _send(self, message_type: int, data: bytes, srvid: int, to: Collection[int] | None = None) -> bool:
        """Send to the other nodes.  Returns whether each was sent it."""
        with self._endpoint.lock:
            sent = self._cluster.broadcast(self._messaging.server_id, message_type, data, srvid, to)
        return not any(sent.values())

    # What comes in

    def is_elsewhere(self, src: ServerID) -> bool:
        """Whether the sender is on another node."""
        return not self._endpoint.presence.is_here(src)

    def expect(self, publication: Publish, src: ServerID) -> Gap | None:
        """The gap in front of a publication of another node, if there is one.  Raises MalformedMessage."""
        if publication.slot >= SLOTS:
            raise MalformedMessage(f"a publication of slot {publication.slot}")
        self.last_heard = time.monotonic()
        return self._mirror(publication.table, src.vnn).expect(publication)

    def note(self, publication: Publish) -> None:
        """A publication of another node has been given to all its subscriptions."""
        mirror = self._mirrors.get(publication.table)
        if mirror is not None:
            mirror.progress.note(publication)

    def _mirror(self, table: int, node: int) -> Mirror:
        mirror = self._mirrors.get(table)
        if mirror is None:
            if len(self._mirrors) >= _MIRRORS:
                del self._mirrors[next(iter(self._mirrors))]
            mirror = self._mirrors[table] = Mirror(table, node)
            self._connected |= {node}  # if it has left before the next look, that is a gap
        return mirror

    def _on_hello(self, message: Message) -> None:
        """A process of another node subscribes, and wants to know the numbers."""
        node = message.src.vnn
        self._silent.discard(node)
        known = self._subscribers.setdefault(node, {})
        known[message.src._replace(task_id=EVERY_TASK)] = None
        if len(known) > _SUBSCRIBERS:
            del known[next(iter(known))]
        with _unless_replaced():
            self._table().tell_soon()
            self._tell()

    def _on_numbers(self, message: Message) -> None:
        """The numbers of another node have come."""
        try:
            numbers = unpack_numbers(message.data, SLOTS)
        except MalformedMessage as error:
            self._endpoint.drops("a bad publication", str(error), about_it=about(message))
            return
        if self._is_subscribed:
            gap = self._mirror(numbers.table, message.src.vnn).take(numbers, self._since)
            if gap is not None:
                self._tell_gap(gap)

    def _on_roll(self, message: Message) -> None:
        """Answer for all that subscribe here, unless that is another one's turn (Rule 6)."""
        others = self._messaging._others(PUBLISH)
        if not others or self._messaging.server_id.pid < others[0].pid:
            self._answer(message)
        elif len(self._rolls) < _ROLLS:
            self._rolls[message.src] = message, time.monotonic_ns()

    def _answer(self, message: Message) -> None:
        me = self._messaging.server_id
        members = [(one.pid, one.unique_id) for one in self._messaging._others(PUBLISH)]
        with _unless_replaced():
            self._table().note_roll()
        self._messaging.reply(message, MEMBERS, pack_members([*members, (me.pid, me.unique_id)]))

    # What does not come

    def tick(self) -> list[Gap]:
        """Look at what has changed, and tell the other nodes what is due.  Returns the gaps that show here."""
        cluster, connections, gaps = self._cluster, self._cluster.connections, []
        with self._endpoint.lock:
            cluster.look_at_nodes()
        connected = frozenset() if cluster.trouble else frozenset(cluster.others())
        left, joined = self._connected - connected, connected - self._connected
        has_changed = bool(joined) or connections != self._connections
        self._connected, self._connections = connected, connections
        mirrors = list(self._mirrors.values())
        if left & {mirror.node for mirror in mirrors}:
            gaps.append(Gap(GapReason.NODE))
        with _unless_replaced():
            if has_changed:
                self._table().tell_soon()
            self._tell()
            self._answer_others_rolls()
        if self._is_subscribed and (has_changed or any(not mirror.is_known for mirror in mirrors)):
            self._send(HELLO, b"", SRVID_HUBS)
        overdue = [mirror for mirror in mirrors if mirror.progress.tick()]
        if overdue:
            with self._endpoint.lock, contextlib.suppress(TransportError):  # then the next look asks again
                cluster.send_around(self._messaging.server_id, CHECK, b"other nodes")
        return gaps

    def _tell(self) -> None:
        table = self._table()
        if not self._cluster.others() or not table.is_to_be_told():
            return
        if not self._send(NUMBERS, pack_numbers(table.numbers()), SRVID_PUBLICATIONS):
            table.tell_soon()

    def _answer_others_rolls(self) -> None:
        rolls, self._rolls = self._rolls, {}
        for message, came in rolls.values():
            if self._is_subscribed and self._table().last_roll() < came:
                self._answer(message)

    def overdue(self) -> list[Gap]:
        """What was overdue at the last look and has not come since."""
        found = (mirror.progress.overdue() for mirror in tuple(self._mirrors.values()))
        return [gap for gap in found if gap is not None]

    # Acknowledged publications

    @contextlib.contextmanager
    def rolls(self, on_settled: Callable[[], None]) -> Iterator[list[PendingRequest]]:
        """Ask each other node who subscribes there, and have these requests in flight inside; see take_rolls()."""
        endpoint, messaging = self._endpoint, self._messaging
        asked: list[PendingRequest] = []
        try:
            with endpoint.lock:
                for node in self._cluster.others():
                    request = endpoint.requests.open(
                        messaging.server_id, ServerID(1, 0, node), MEMBERS, on_settled, answer_from_any=True
                    )
                    asked.append(request)
                    messaging.handlers.expect(MEMBERS)
                    self._begin_roll(node, request)
            yield asked
        finally:
            with endpoint.lock:
                for request in asked:
                    endpoint.requests.close(request)
                    messaging.handlers.expect_no_more(MEMBERS)

    def _begin_roll(self, node: int, request: PendingRequest) -> None:
        cluster = self._cluster
        if node in self._silent:
            nobody = NoSuchProcess(f"nobody on node {node} subscribes")
            if not cluster.ask_whether_there(node, lambda: request.settle(error=nobody)):
                request.settle(error=TransportError(cluster.trouble))
            return
        src = request.src._replace(task_id=request.task_id)
        error = cluster.broadcast(src, ROLL, b"", SRVID_PUBLICATIONS, [node])[node]
        if error is not None:
            request.settle(error=error)

    def take_rolls(self, asked: Sequence[PendingRequest]) -> tuple[list[ServerID], dict[int, MsgdError]]:
        """Who is to be asked, and by node, why nobody can say who subscribes there."""
        errors: dict[int, MsgdError] = {}
        if self._cluster.trouble:
            errors = dict.fromkeys(self._subscribers, TransportError(self._cluster.trouble))
        for request in asked:
            node = request.dst.vnn
            if request.answer is not None:
                try:
                    members = unpack_members(request.answer.data)
                except MalformedMessage as error:
                    errors[node] = error
                    continue
                addresses = (ServerID(pid, EVERY_TASK, node, unique_id) for pid, unique_id in members)
                self._subscribers[node] = dict.fromkeys(addresses)
            elif request.error is None and not self._subscribers.get(node):
                self._silent.add(node)
            elif request.error is not None and not isinstance(request.error, NoSuchProcess):
                errors[node] = request.error
        nodes = {request.dst.vnn for request in asked} - errors.keys() - self._silent
        return [one for node in sorted(nodes) for one in self._subscribers.get(node, ())], errors

    def send_plainly(self, frame: bytes, asked: Collection[ServerID]) -> None:
        """Send a publication to the nodes of which nobody is asked: who has just subscribed there hears it, too."""
        self._send(PUBLISH, frame, SRVID_PUBLICATIONS, set(self._cluster.others()) - {one.vnn for one in asked})

    def forget(self, gone: Collection[ServerID]) -> None:
        """These do not subscribe any more."""
        for one in gone:
            self._subscribers.get(one.vnn, {}).pop(one, None)


def _unless_replaced() -> AbstractContextManager[object]:
    """Another thread may have replaced the table just now: then there is nothing to do before the next look."""
    return contextlib.suppress(ContextClosed)
