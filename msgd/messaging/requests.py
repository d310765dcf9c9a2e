# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Requests that wait for their answers: matched here for threads and for asyncio alike.

Rule 1.  A request leaves from a task id of its own.  Whoever answers, Samba's daemons too, answers to the id that
asked, so any number of requests may be in flight at once and each gets its own answer.
Rule 2.  An answer that comes to the context's own id is one from a peer that knows pids alone (Samba 3.0's records have
nothing else).  It goes to the oldest request in flight that asked this process for this type.
Rule 3.  A request is settled once, by what comes first: the answer, the word of the process asked that nobody handles
the type there, or its end.  Whoever waits gives up at the deadline.  What comes later is counted and logged as a drop.
Rule 4.  The answer has to come from the process asked, unless the caller takes it from any (winbindd has its children
answer).
Rule 5.  An answer that was on its way when its process ended still counts: whoever sees the end dispatches until
nothing more comes, and only then settles the request.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, MutableSequence
from typing import Any

from msgd.errors import MalformedMessage, MsgdError, NoHandler, NoSuchProcess
from msgd.messaging.descriptors import keep
from msgd.presence import Presence
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType, type_name
from msgd.wire.refusal import FIRST_REQUEST_TASK, NOT_HANDLED, Reason, unpack_refusal
from msgd.wire.server_id import TASK_ID_MAX, ServerID

REPLY_TIMEOUT = 10.0
"""Seconds that a request waits by default; smbcontrol's own default."""

REPLY_TYPES: dict[int, int] = {
    MessageType.PING: MessageType.PONG,
    MessageType.REQ_DEBUGLEVEL: MessageType.DEBUGLEVEL,
    MessageType.REQ_PROFILELEVEL: MessageType.PROFILELEVEL,
    MessageType.REQ_POOL_USAGE: MessageType.POOL_USAGE,
    MessageType.SMB_TELL_NUM_CHILDREN: MessageType.SMB_NUM_CHILDREN,
}
"""The pairs that Samba has: which type answers which."""


def reply_type_of(message_type: int, reply_type: int | None) -> int:
    """The type that answers `message_type`: the one given, else Samba's.  TypeError if neither is known."""
    known = REPLY_TYPES.get(message_type) if reply_type is None else reply_type
    if known is None:
        raise TypeError(f"reply_type is missing: no type is known to answer {type_name(message_type)}")
    return known


class PendingRequest:
    """One request in flight; `on_settled` is called once, in the thread that settles it."""

    __slots__ = (
        "_on_settled",
        "_presence",
        "answer",
        "answer_from_any",
        "dst",
        "error",
        "reply_type",
        "src",
        "task_id",
    )

    def __init__(
        self,
        src: ServerID,
        task_id: int,
        dst: ServerID,
        reply_type: int,
        answer_from_any: bool,
        on_settled: Callable[[], None],
        presence: Presence,
    ) -> None:
        self.src = src
        """The context that asks; the request leaves from `task_id` in its place."""
        self.task_id = task_id
        self.dst = dst
        self.reply_type = reply_type
        self.answer_from_any = answer_from_any
        self.answer: Message | None = None
        self.error: MsgdError | None = None
        self._on_settled = on_settled
        self._presence = presence

    def is_from_asked(self, message: Message) -> bool:
        """Whether the message comes from the process asked, or may come from any."""
        return self.answer_from_any or self._presence.is_same_process(message.src, self.dst)

    @property
    def is_settled(self) -> bool:
        """Whether the answer, or what there is instead of one, is known."""
        return self.answer is not None or self.error is not None

    def settle(
        self,
        answer: Message | None = None,
        error: MsgdError | None = None,
        queue: MutableSequence[Any] | None = None,
    ) -> None:
        """Note the answer or the error, unless one is known already, and remove the head of the queue that held it.

        The two are one step, with no call in between: an exception that a signal's handler raises leaves the answer in
        the queue or here, and not in both.
        """
        if answer is not None:
            keep(answer)
        if not self.is_settled:
            self.answer, self.error = answer, error
            if queue is not None:
                del queue[0]
            self._on_settled()

    def result(self) -> Message:
        """The answer; raises the error if there is none."""
        if self.answer is None:
            assert self.error is not None
            raise self.error
        return self.answer

    def offer(self, message: Message, queue: MutableSequence[Any]) -> bool:
        """Settle the request by a message that has come to its task id, and is the head of the queue.

        Returns False if the message does not belong to it.
        """
        if self.is_settled or not self.is_from_asked(message):
            return False
        if message.type == self.reply_type:
            answer = message._replace(dst=self.src)  # whoever asked knows nothing of the request's id
            self.settle(answer=answer, queue=queue)
            return True
        if message.type != NOT_HANDLED:
            return False
        try:
            reason, message_type = unpack_refusal(message.data)
        except MalformedMessage:
            return False
        self.settle(error=_refused(self.dst, reason, message_type), queue=queue)
        return True


def _refused(dst: ServerID, reason: Reason, message_type: int) -> MsgdError:
    if reason is Reason.NO_TASK:
        return NoSuchProcess(
            f"no process {dst}: its pid lives and has no such task", dst=dst, message_type=message_type
        )
    text = f"{dst} has no handler for {type_name(message_type)}"
    return NoHandler(text, dst=dst, message_type=message_type)


class Requests:
    """The requests in flight of one endpoint, by task id.

    Changes are made under the endpoint's lock.  The thread that dispatches reads without it.
    """

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._by_task: dict[int, PendingRequest] = {}
        self._task_ids = itertools.cycle(range(FIRST_REQUEST_TASK, TASK_ID_MAX + 1))

    def __len__(self) -> int:
        return len(self._by_task)

    def open(
        self, src: ServerID, dst: ServerID, reply_type: int, on_settled: Callable[[], None], *, answer_from_any: bool
    ) -> PendingRequest:
        """A new request of the context `src`, with a task id that no other has."""
        task_id = next(one for one in self._task_ids if one not in self._by_task)
        request = PendingRequest(src, task_id, dst, reply_type, answer_from_any, on_settled, self._presence)
        self._by_task[task_id] = request
        return request

    def close(self, request: PendingRequest) -> None:
        """Forget a request: it is settled, or nobody waits for it any more."""
        self._by_task.pop(request.task_id, None)

    def by_task(self, task_id: int) -> PendingRequest | None:
        """The request in flight that left from this task id."""
        return self._by_task.get(task_id)

    def oldest_for(self, message: Message) -> PendingRequest | None:
        """The oldest request in flight that a message without a request's task id can be the answer to."""
        return next(
            (
                one
                for one in tuple(self._by_task.values())
                if not one.is_settled and one.reply_type == message.type and one.is_from_asked(message)
            ),
            None,
        )

    def settle_all(self, error: Callable[[], MsgdError]) -> None:
        """The endpoint closes: no answer will come."""
        for request in list(self._by_task.values()):
            request.settle(error=error())
        self._by_task.clear()
