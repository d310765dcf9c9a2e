# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Broadcasts: one message, or several, to each of the processes that presence.members knows.

Rule 1.  The lock is held for a bounded number of processes at a time, so that other threads get it in between.
Rule 2.  A process that cannot be reached is a failure, with the reason; one that had died before is forgotten.
Rule 3.  In a cluster, each other node gets it once, for all of its processes.
Rule 4.  Several messages go to one process after the other, and each process is woken up once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgd.errors import MsgdError, NoSuchProcess, QueueFull, TransportError
from msgd.messaging.endpoint import Endpoint
from msgd.results import Broadcast, SendStatus
from msgd.wire.server_id import ServerID

_NO_TASKS: set[ServerID] = set()
"""No task of a process has been seen to exist: a broadcast to msgd's own is for every task, which needs none."""

_STEP = 64
"""Processes that a broadcast goes to under the lock at a time."""


def broadcast(
    endpoint: Endpoint,
    dsts: Sequence[ServerID],
    src: ServerID,
    message_type: int,
    data: bytes,
    duplicates_allowed: bool,
) -> Broadcast:
    """Send one message to each of these processes."""
    delivered, failures, transmit = 0, dict[int, MsgdError](), endpoint.transmit
    plain = endpoint.plain_sender if duplicates_allowed else None
    for first in range(0, len(dsts), _STEP):
        with endpoint.lock:
            endpoint.check_usable()
            for dst in dsts[first : first + _STEP]:
                try:
                    if plain is not None and plain(dst, src, message_type, data, _NO_TASKS) is not None:
                        delivered += 1
                        continue
                    if transmit(dst, src, message_type, data, (), duplicates_allowed) is not SendStatus.MERGED:
                        endpoint.sent += 1
                        endpoint.sent_bytes += len(data)
                    delivered += 1
                except (NoSuchProcess, QueueFull, TransportError) as error:
                    _note_unreached(endpoint, dst, message_type, error, failures)
    if endpoint.observer is not None:
        for _ in range(delivered):
            endpoint.observer.sent(message_type, len(data))
    return Broadcast(delivered, failures, to_other_nodes(endpoint, src, [(message_type, data)]))


def broadcast_many(
    endpoint: Endpoint,
    src: ServerID,
    messages: Mapping[ServerID, Sequence[tuple[int, bytes]]],
    all_messages: Sequence[tuple[int, bytes]],
) -> Broadcast:
    """Send to each process the messages that are for it, and all of them to other nodes."""
    delivered, failures = 0, dict[int, MsgdError]()
    for dst, wanted in messages.items():
        sent: list[tuple[int, bytes]] = []
        with endpoint.lock:
            endpoint.check_usable()
            try:
                if endpoint.monitored is None and endpoint.backend.send_batch(dst, src, wanted):
                    sent += wanted
                    endpoint.sent += len(wanted)
                    endpoint.sent_bytes += sum(len(data) for _, data in wanted)
                else:
                    _send_gathering(endpoint, dst, src, wanted, sent)
                delivered += 1
            except (NoSuchProcess, QueueFull, TransportError) as error:
                refused_type, _ = wanted[min(len(sent), len(wanted) - 1)]
                _note_unreached(endpoint, dst, refused_type, error, failures)
        if endpoint.observer is not None:
            for message_type, data in sent:
                endpoint.observer.sent(message_type, len(data))
    return Broadcast(delivered, failures, to_other_nodes(endpoint, src, all_messages))


def to_other_nodes(
    endpoint: Endpoint, src: ServerID, messages: Sequence[tuple[int, bytes]]
) -> dict[int, MsgdError | None]:
    """Send to all processes of the other nodes; there each process picks what it listens to."""
    nodes: dict[int, MsgdError | None] = {}
    with endpoint.lock:
        endpoint.check_usable()
        if endpoint.cluster is None:
            return nodes
        for message_type, data in messages:
            for number, error in endpoint.cluster.broadcast(src, message_type, data).items():
                nodes[number] = nodes.get(number) or error
                endpoint.sent += error is None
                endpoint.sent_bytes += len(data) if error is None else 0
    return nodes


def _send_gathering(
    endpoint: Endpoint,
    dst: ServerID,
    src: ServerID,
    messages: Sequence[tuple[int, bytes]],
    sent: list[tuple[int, bytes]],
) -> None:
    """Send the messages one by one and note each in `sent`; the transport may write them together at the end."""
    plain = endpoint.plain_sender
    endpoint.backend.begin_gathering()
    try:
        for message_type, data in messages:
            if plain is None or plain(dst, src, message_type, data, _NO_TASKS) is None:
                endpoint.transmit(dst, src, message_type, data, (), True)
                endpoint.sent += 1
                endpoint.sent_bytes += len(data)
            sent.append((message_type, data))
    finally:
        if endpoint.backend.end_gathering():
            endpoint.backend.flush()


def _note_unreached(
    endpoint: Endpoint, dst: ServerID, message_type: int, error: MsgdError, failures: dict[int, MsgdError]
) -> None:
    if endpoint.presence.is_alive(dst):
        error.dst, error.type = dst, message_type
        failures[dst.pid] = error
    else:
        endpoint.presence.members.forget(dst)
