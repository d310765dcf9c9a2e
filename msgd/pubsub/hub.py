# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The hub: a process's one place among the publishers and subscribers of a directory, whatever has opened it.

Rule 1.  A process has one hub in a directory, for all its PubSub objects, synchronous and asyncio.  So an
    acknowledgement speaks for the whole process, and one number tells how much of a publisher it has handled.
Rule 2.  Publications are numbered and sent under one lock, so that they leave in the order of their numbers.  Nothing
    waits under it.
Rule 3.  Callbacks run in the thread that dispatches, one event after the other; a gap is told in front of the event
    that shows it.  Subscriptions of asyncio take their events over into their loop.
Rule 4.  A process that subscribes to nothing does not listen to the class PUBSUB, so publications do not wake it up.
Rule 5.  A hub belongs to its process.  A forked child opens another one (process.py).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from msgd.config import Config
from msgd.errors import ContextClosed, MalformedMessage, MsgdError, QueueFull, TransportError
from msgd.messaging.context import Messaging
from msgd.messaging.handlers import about
from msgd.messaging.watched import Kept
from msgd.pubsub.background import Background
from msgd.pubsub.events import Event, Gap, GapReason, Publication
from msgd.pubsub.parcel import Parcel
from msgd.pubsub.progress import Progress, State
from msgd.pubsub.subscriptions import NOBODY_ASKS, Receipt, Sink, Subscriptions
from msgd.pubsub.table import Slot, Table
from msgd.wire.header import Message
from msgd.wire.message_types import MessageClass
from msgd.wire.pubsub import (
    ACK,
    ASK,
    CHECK,
    PUBLISH,
    TOPICS,
    Ack,
    Publish,
    pack_ack,
    pack_publish,
    pack_topics,
    unpack_publish,
)
from msgd.wire.refusal import FIRST_REQUEST_TASK
from msgd.wire.server_id import ServerID

if TYPE_CHECKING:
    from msgd.pubsub.elsewhere import OtherNodes


class Face(Protocol):
    """What has opened the hub: a PubSub of either kind."""

    def miss(self, gap: Gap) -> None:
        """Something may have been missed.  From the thread that dispatches."""

    def leave_parent(self, state: State) -> None:
        """This process has been forked: the hub is the parent's, which had handled this much."""

    def reopen(self) -> None:
        """In a forked child: open a hub of its own, if it can."""

    def note_closed(self) -> None:
        """The hub has been closed."""


class Hub:
    """Publishes, and gives what comes in to the subscriptions of this process.

    Raises what Messaging and Table raise.  `faces`: those that have opened it.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.since = time.monotonic()
        """What was published after this, on the monotonic clock, is not to be missed by anybody who has opened it."""
        self.faces: list[Face] = []
        self.subscriptions = Subscriptions()
        self.lock = threading.RLock()
        self.messaging = Messaging(config, listens=MessageClass(0))
        try:
            self.progress = Progress(Table(config.lock_directory))
            for message_type, handler in ((PUBLISH, self._on_publish), (CHECK, self._on_check), (ASK, self._on_ask)):
                self.messaging.register(message_type, handler)
            self.others = _other_nodes(self.messaging, lambda: self.progress.table, self._tell_gaps)
        except BaseException:
            self.messaging.close()
            raise
        self._slot: Slot | None = None
        self.watched = Kept()
        """The ends of subscribers, from one publication that is acknowledged to the next."""
        self._gaps: deque[Gap] = deque()
        """Gaps that are still to be told."""
        self._is_checking = False
        """Whether a CHECK is on its way."""
        self._in_callbacks = 0
        """The thread that runs callbacks, as threading.get_ident() gives it; 0: none."""
        self._background: Background | None = None
        self.is_closed = False

    # Subscribing

    def attach(self, sink: Sink) -> None:
        """Give a subscription what is published from now on.  Raises TransportError."""
        with self.lock:
            self.subscriptions.add(sink)
            if len(self.subscriptions) > 1:
                return
            try:
                self.messaging.listen(MessageClass.PUBSUB)
            except BaseException:
                self.subscriptions.remove(sink)
                raise
            self.progress.begin()
            if self.others is not None:
                self.others.begin(self.since)

    def detach(self, sink: Sink) -> None:
        """Give a subscription nothing more."""
        with self.lock:
            self.subscriptions.remove(sink)
            if not len(self.subscriptions) and not self.is_closed:
                self.progress.end()
                if self.others is not None:
                    self.others.end()
                self.messaging.listen(MessageClass(0))

    @property
    def runs_callbacks_here(self) -> bool:
        """Whether this thread is in a callback of the hub's."""
        return self._in_callbacks == threading.get_ident()

    # Publishing

    def publish(self, parcels: Sequence[Parcel], *, include_self: bool) -> Publication:
        """Publish these, in their order; see PubSub.publish_many."""
        with self.lock:
            is_for_itself = include_self and len(self.subscriptions) > 0
            frames = [self._number(parcel, is_for_itself=is_for_itself) for parcel in parcels]
            if len(frames) == 1:
                sent = self.messaging.send_all(PUBLISH, frames[0])
            else:
                sent = self.messaging.send_all_many([(PUBLISH, frame) for frame in frames])
            failures, delivered = dict(sent.failures), sent.delivered
            if is_for_itself:
                error = self._send_to_itself(frames)
                if error is None:
                    delivered += 1
                else:
                    failures[self.messaging.server_id.pid] = error
            return Publication(delivered, failures, sent.nodes)

    @contextlib.contextmanager
    def numbered(
        self, parcel: Parcel, elsewhere: Sequence[ServerID] = (), *, include_self: bool
    ) -> Iterator[tuple[bytes, list[ServerID]]]:
        """A publication that is to be asked about: its bytes, and who is to be asked, under the lock.

        `elsewhere`: who is to be asked of the other nodes.
        """
        with self.lock:
            is_for_itself = include_self and len(self.subscriptions) > 0
            frame = self._number(parcel, is_for_itself=is_for_itself)
            if self.others is not None:
                self.others.send_plainly(frame, elsewhere)
            asked = [*self.messaging._others(PUBLISH), *elsewhere]
            yield frame, [*asked, self.messaging.server_id] if is_for_itself else asked

    def _number(self, parcel: Parcel, *, is_for_itself: bool) -> bytes:
        """Count a publication in the table, and pack it.  Call it with the lock held."""
        if self.is_closed:
            raise ContextClosed("this PubSub has been closed")
        if self.progress.table.is_unlinked:
            self._replace_table()
        table, slot = self.progress.table, self._slot
        if slot is None:
            slot = self._slot = table.take_slot()
        if self.others is None:
            number = slot.advance()
        else:
            table.note_time()
            number = slot.advance()
            table.note_time()
        self.progress.note_own(slot.index, number, is_for_itself=is_for_itself)
        return pack_publish(slot.index, table.id, number, *parcel)

    def _send_to_itself(self, frames: Sequence[bytes]) -> MsgdError | None:
        try:
            for frame in frames:
                self.messaging.send(self.messaging.server_id, PUBLISH, frame)
        except (QueueFull, TransportError) as error:
            self._gaps.append(Gap(GapReason.MISSING, 1))
            return error
        return None

    # What comes in

    def _on_publish(self, message: Message) -> None:
        try:
            publication = unpack_publish(message.data)
            sinks = self.subscriptions.wanting(publication.topic)
            event = Event(publication.topic, publication.data(), _publisher(message.src)) if sinks else None
            others = self.others
            if others is not None and not others.is_elsewhere(message.src):
                others = None
            if others is None and not self.progress.is_credible(publication):
                raise MalformedMessage(f"number {publication.number} of slot {publication.slot} has not been published")
            gap = None if others is None else others.expect(publication, message.src)
        except MalformedMessage as error:
            self.messaging._endpoint.drops("a bad publication", str(error), about_it=about(message))
            return
        before, self._in_callbacks = self._in_callbacks, threading.get_ident()
        try:
            gap = self._gap_before(publication) if others is None else gap
            if gap is not None or self._gaps:
                self._tell_gaps(gap)
            if message.src.task_id >= FIRST_REQUEST_TASK:
                self._deliver(event, sinks, Receipt(lambda ack: self._acknowledge(message, ack)))
            elif event is not None:
                self._deliver(event, sinks, NOBODY_ASKS)
        finally:
            (self.progress if others is None else others).note(publication)
            self._in_callbacks = before

    def _deliver(self, event: Event | None, sinks: Sequence[Sink], receipt: Receipt) -> None:
        try:
            for sink in sinks:
                assert event is not None
                receipt.add()
                sink.deliver(event, receipt)
        finally:
            receipt.close()

    def _acknowledge(self, message: Message, ack: Ack) -> None:
        """From any thread: the last callback may have returned in an event loop."""
        with contextlib.suppress(ContextClosed):  # who has asked is told that nobody is here
            self.messaging.reply(message, ACK, pack_ack(ack))

    def _gap_before(self, publication: Publish) -> Gap | None:
        if publication.table != self.progress.table.id and self.progress.table.is_unlinked:
            with self.lock:
                self._replace_table()
        return self.progress.expect(publication)

    def _replace_table(self) -> None:
        """Somebody has unlinked the table: go on with the next one, from where it is now."""
        table, slot = Table(self.config.lock_directory), self._slot
        old, self.progress, self._slot = self.progress, Progress(table), None
        if slot is not None:
            slot.release()
        old.table.close()
        if len(self.subscriptions):
            self.progress.begin()
            self._gaps.append(Gap(GapReason.TABLE))

    def _on_ask(self, message: Message) -> None:
        self.messaging.reply(message, TOPICS, pack_topics(self.subscriptions.topics()))

    # What does not come

    def tick(self) -> None:
        """Look for what is overdue; to be called every so often, from any thread.

        Raises ContextClosed, TransportError.
        """
        if self.is_closed:
            return
        if self.others is not None:
            self._gaps += self.others.tick()
        if not len(self.subscriptions):
            return
        if self.progress.table.is_unlinked:
            with self.lock:
                self._replace_table()
        is_overdue = self.progress.tick()
        if (is_overdue or self._gaps) and not self._is_checking:
            self._is_checking = True
            try:
                self.messaging.send(self.messaging.server_id, CHECK)
            except QueueFull:
                self._is_checking = False  # there is enough to do; the next tick asks again

    def _on_check(self, message: Message) -> None:
        if message.src.pid != os.getpid() or not self.messaging._endpoint.presence.is_here(message.src):
            return
        if message.data:  # it has come through ctdbd, behind what other nodes have sent
            assert self.others is not None
            self._gaps += self.others.overdue()
            self._tell_gaps(None)
        else:
            self._is_checking = False
            self._tell_gaps(self.progress.overdue())

    def _tell_gaps(self, gap: Gap | None) -> None:
        """Tell this gap and those that are still to be told, in the thread that dispatches."""
        if gap is not None:
            self._gaps.append(gap)
        before, self._in_callbacks = self._in_callbacks, threading.get_ident()
        try:
            while self._gaps:
                one = self._gaps.popleft()
                for face in tuple(self.faces):
                    face.miss(one)
        finally:
            self._in_callbacks = before

    # Life

    def start(self, interval: float) -> None:
        """Dispatch and tick in threads from now on.  Raises BackendUnavailable for the messaging type tdb."""
        with self.lock:
            if self._background is None:
                self.messaging.start()
                self._background = Background(self.messaging, self.tick, interval)

    def pause(self) -> Callable[[], None]:
        """Before a fork: end the threads.  Returns what starts them again."""
        background = self._background
        if background is None:
            return _nothing
        background.stop()
        return background.start

    def close(self, timeout: float | None = None) -> int:
        """Leave: send what is queued.  Returns how many publications could not be delivered."""
        with self.lock:
            if self.is_closed:
                return 0
            self.is_closed = True
        if self._background is not None:
            self._background.stop()
        try:
            if self.others is not None:
                self.others.close()
            return self.messaging.close(timeout)
        finally:
            with self.lock:
                self._release()
            for face in tuple(self.faces):
                face.note_closed()

    def hold(self) -> None:
        """Before a fork: nobody else is in the middle of a change until let_go()."""
        self.lock.acquire()
        self.progress.lock.acquire()

    def let_go(self) -> None:
        """After a fork, in either process."""
        self.progress.lock.release()
        self.lock.release()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's hub."""
        state = self.progress.state()
        self.is_closed = True
        self._release()
        for face in tuple(self.faces):
            face.leave_parent(state)

    def _release(self) -> None:
        if self._slot is not None:
            self._slot.release()
            self._slot = None
        self.watched.close()
        self.progress.table.close()


def _publisher(src: ServerID) -> ServerID:
    """The publisher's address: what is acknowledged comes from the task id of a request."""
    return src if src.task_id < FIRST_REQUEST_TASK else src._replace(task_id=0)


def _other_nodes(messaging: Messaging, table: Callable[[], Table], tell: Callable[[Gap], None]) -> OtherNodes | None:
    """The other nodes of the cluster; None if this machine is not clustered."""
    cluster = messaging._endpoint.cluster
    if cluster is None:
        return None
    from msgd.pubsub.elsewhere import OtherNodes  # only in a cluster

    return OtherNodes(messaging, cluster, table, tell)


def _nothing() -> None:
    """What starts the threads again where there were none."""
