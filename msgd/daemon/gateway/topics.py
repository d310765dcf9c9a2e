# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The topics of one client: what it publishes, and what it is told of (msgd.pubsub).

Rule 1.  The connection process is the subscriber.  It is told of gaps as every other is, and tells the client.
Rule 2.  A client that does not read its backlog is told nothing more meanwhile, and the connection process takes
nothing in for it; so publishers find its queue full, and the client hears of a gap once it goes on.
Rule 3.  The hub is opened by the first request that needs it, and closed with the connection.
Rule 4.  What is to be acknowledged waits among the calls (calls.py).  A publication that may not wait there is refused
    before it is counted: it would be a gap for everybody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from msgd.config import Config
from msgd.daemon.gateway.calls import Calls, Failures, Question
from msgd.daemon.loop import NEVER, Loop
from msgd.errors import MsgdError, QueueFull, ReplyTimeout
from msgd.messaging import Messaging
from msgd.messaging.requests import PendingRequest
from msgd.pubsub.acked import collected
from msgd.pubsub.events import Event, Gap, Publication
from msgd.pubsub.face import CHECK_INTERVAL, BaseFace
from msgd.pubsub.hub import Hub
from msgd.pubsub.parcel import Parcel, pack_parcel
from msgd.pubsub.subscriptions import Receipt
from msgd.wire.gateway.limits import MAX_TYPES
from msgd.wire.gateway.replies import error_code, write_gap, write_publication
from msgd.wire.gateway.requests import Asked, ListTopics, Publish
from msgd.wire.pubsub import ACK, ASK, PUBLISH, TOPICS, Data, unpack_topics
from msgd.wire.server_id import ServerID


class _Told:
    """One topic or pattern that the client is told of."""

    def __init__(self, topic: str, tell: Callable[[str, Event], None]) -> None:
        self.topic = topic
        self._tell = tell

    def deliver(self, event: Event, receipt: Receipt) -> None:
        """Tell the client."""
        self._tell(self.topic, event)
        receipt.ran()

    def miss(self, gap: Gap) -> bool:
        """The client is told once, by Topics."""
        return True


class Topics(BaseFace):
    """Publishes for a client and tells it of publications; `say` takes a line, `no_memory` the length of a topic's."""

    def __init__(
        self, config: Config, loop: Loop, say: Callable[[bytes], None], no_memory: Callable[[int], None]
    ) -> None:
        super().__init__(config, None)
        self._loop = loop
        self._say = say
        self._no_memory = no_memory
        self._told: dict[str, _Told] = {}
        self._ticks = loop.call_every(NEVER, self._tick)

    def __len__(self) -> int:
        return len(self._told)

    def _begin(self, hub: Hub) -> None:
        """The connection's own loop dispatches."""

    def publish(self, topic: str, data: Data) -> Mapping[str, object]:
        """Publish.  Returns the members of the answer; raises MessageTooLarge, TransportError."""
        hub = self._open()
        publication = hub.publish((pack_parcel(topic, data, hub.config.max_message_size),), include_self=True)
        return {"delivered": publication.delivered, "failures": _codes(publication.failures)}

    def publish_acked(self, asked: Asked, request: Publish, calls: Calls) -> None:
        """Publish, and answer once all have handled it.  Raises MessageTooLarge, TransportError, QueueFull."""
        hub = self._open()
        parcel = pack_parcel(request.topic, request.data, hub.config.max_message_size)
        others, end = hub.others, time.monotonic() + request.timeout
        calls.check_room()
        if others is None:
            self._ask_subscribers(asked, request, calls, parcel)
            return

        def go_on(rolls: list[PendingRequest]) -> None:
            elsewhere, nodes = others.take_rolls(rolls)
            left = max(0.0, end - time.monotonic())
            self._ask_subscribers(asked, request._replace(timeout=left), calls, parcel, elsewhere, nodes)

        calls.go_on_later(asked, min(request.timeout, others.roll_timeout), others.rolls, go_on)

    def _ask_subscribers(
        self,
        asked: Asked,
        request: Publish,
        calls: Calls,
        parcel: Parcel,
        elsewhere: Sequence[ServerID] = (),
        nodes: Mapping[int, MsgdError] | None = None,
    ) -> None:
        hub = self._open()

        def conclude(requests: Collection[PendingRequest], failures: Failures) -> Mapping[str, object]:
            return _acknowledged(collected(hub, requests, failures, nodes or {}, request.timeout))

        with hub.numbered(parcel, elsewhere, include_self=True) as (frame, subscribers):
            question = Question(PUBLISH, frame, ACK)
            calls.ask_all(asked, request.timeout, hub.messaging, subscribers, question, conclude)

    def list(self, asked: Asked, request: ListTopics, messaging: Messaging, calls: Calls) -> None:
        """Ask every subscriber what it subscribes to, by `messaging`.  Raises QueueFull, TransportError."""

        def conclude(requests: Collection[PendingRequest], failures: Failures) -> Mapping[str, object]:
            errors = {dst.pid: error for dst, error in failures.items()}
            found = {messaging.server_id.pid: sorted(self._told)} if self._told else {}
            for one in requests:
                try:
                    if not one.is_settled:
                        raise ReplyTimeout(f"pid {one.dst.pid} did not answer within {request.timeout:g} seconds")
                    found[one.dst.pid] = unpack_topics(one.result().data)
                except MsgdError as error:
                    errors[one.dst.pid] = error
            return {
                "topics": {str(pid): topics for pid, topics in sorted(found.items())},
                "failures": _codes(errors),
            }

        calls.check_room()
        others = messaging._others(ASK)
        calls.ask_all(asked, request.timeout, messaging, others, Question(ASK, b"", TOPICS), conclude)

    def subscribe(self, topics: tuple[str, ...]) -> Mapping[str, object]:
        """Tell the client of these from now on.  Raises QueueFull, TransportError."""
        new = {topic: _Told(topic, self._tell) for topic in topics if topic not in self._told}
        if len(self._told) + len(new) > MAX_TYPES:
            raise QueueFull(f"a client may subscribe to {MAX_TYPES} topics at most")
        for topic, told in new.items():
            self._add(told)
            self._told[topic] = told
        self._ticks.restart(CHECK_INTERVAL)
        return {}

    def unsubscribe(self, topics: tuple[str, ...]) -> Mapping[str, object]:
        """Tell the client no longer of these."""
        for topic in topics:
            if (told := self._told.pop(topic, None)) is not None:
                self._remove(told)
        if not self._told:
            self._ticks.restart(NEVER)
        return {}

    def close(self) -> None:
        """Tell nothing more."""
        self._ticks.cancel()
        self._told.clear()
        self._close(0)

    def miss(self, gap: Gap) -> None:
        """Tell the client that it may have missed something."""
        self._say(write_gap(gap.reason.name.lower(), gap.missed, str(gap)))

    def _tell(self, pattern: str, event: Event) -> None:
        try:
            self._say(write_publication(pattern, event.topic, str(event.src), event.data))
        except MemoryError:
            self._no_memory(len(event.topic))

    def _tick(self) -> None:
        if self._hub is not None:
            self._hub.tick()


def _acknowledged(publication: Publication) -> Mapping[str, object]:
    """The members of the answer: processes of this node by their pids, those of others by their addresses."""
    outcomes: dict[Any, int | MsgdError] = {}
    for some in (publication.acked, publication.failures, publication.elsewhere):
        outcomes.update(some)
    failures = {one: outcome for one, outcome in outcomes.items() if isinstance(outcome, MsgdError)}
    answer: dict[str, object] = {
        "delivered": publication.delivered,
        "acked": {str(one): outcome for one, outcome in outcomes.items() if one not in failures},
        "failures": _codes(failures),
        "reasons": {str(one): str(error) for one, error in failures.items()},
        "complete": publication.is_complete,
    }
    if publication.nodes:
        answer["nodes"] = {str(node): str(error) for node, error in publication.nodes.items()}
    return answer


def _codes(failures: Mapping[Any, MsgdError]) -> dict[str, str]:
    return {str(pid): error_code(error) for pid, error in failures.items()}
