# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Send one control message to some processes, then wait until each has received it and, where due, answered.

Rule 1. The wait ends as soon as nothing is outstanding.
Rule 2. A process that ends is not waited for.  A pidfd of each reports its end at once; nothing is polled on a timer.
        Messaging.watch() opens the pidfd before it checks that the process is alive, so a reused pid is never watched.
Rule 3. Messages that a process sent before it ended are read before it is reported as gone.
Rule 4. A message is taken once it is in the receiver's queue.  If that queue was full, the message waits in this
        process, and it is taken once no message is queued here.
Rule 5. Each message that is answered is a request of the library's, which takes one answer for each process asked:
        what else comes (winbindd answers a PING to task 0 twice) is dropped.
Rule 6. A process of msgd's says at once that it has no handler for a type.  One of Samba's says nothing.  So whoever
        has not answered after _PROBE_AFTER is sent a PING.  Its messages arrive in order and so do its answers, hence
        a PONG without an answer before it means that there is no handler.
Rule 7. In a cluster, nobody knows how many processes the other nodes have.  So after a message to all of them, their
        answers are awaited until the timeout.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import time
from collections.abc import Callable, Sequence
from functools import partial

from msgd.errors import MsgdError, NoHandler, NoSuchProcess
from msgd.messaging import Messaging
from msgd.messaging.requests import PendingRequest
from msgd.results import SendStatus
from msgd.tools.msgcontrol.command import Command, Request
from msgd.tools.msgcontrol.destination import WhoIsThere
from msgd.tools.msgcontrol.outcome import Outcome
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType
from msgd.wire.server_id import NONCLUSTER_VNN, ServerID

_LATE_ROUNDS = 2
"""Rounds of dispatch after the deadline that found something: a PING to this process itself, and its PONG."""

_PROBE_AFTER = 0.3
"""Seconds: most answers come within a thousandth of that, and a probe is a line in the log of Samba's daemons."""


class _Target:
    """A destination that was sent the message: whether it has received it, its answer, and that to the probe."""

    def __init__(self, dst: ServerID, pidfd: int) -> None:
        self.dst = dst
        self.pidfd = pidfd
        self.taken = False
        self.request: PendingRequest | None = None
        self.probe: PendingRequest | None = None


class Exchange:
    """Sends one command's message and collects the answers.  Calls `on_answer` for each answer as it arrives."""

    def __init__(
        self,
        messaging: Messaging,
        there: WhoIsThere,
        command: Command,
        on_answer: Callable[[Message], None],
        *,
        to_all: bool = False,
    ) -> None:
        self._messaging = messaging
        self._there = there
        self._command = command
        self._on_answer = on_answer
        self._outstanding: dict[ServerID, _Target] = {}
        self._settled: list[_Target] = []
        self._open = contextlib.ExitStack()
        self._to_all = to_all
        self._nodes_asked: list[int] = []
        self._from_other_nodes: list[Message] = []

    def run(self, destinations: Sequence[ServerID], request: Request, timeout: float) -> Outcome:
        """Send to each destination and wait at most `timeout` seconds for delivery and answers."""
        now = time.monotonic()
        lock_directory = self._messaging.config.lock_directory
        outcome = Outcome(self._command, request.answer is not None, lock_directory, timeout)
        raise_descriptor_limit()
        with self._open:
            for dst in destinations:
                self._send(dst, request, outcome)
            if self._to_all:
                self._send_to_other_nodes(request, outcome)
            self._wait(now + timeout, now + _PROBE_AFTER, outcome)
        for target in self._outstanding.values():
            (outcome.late if self._messaging.is_alive(target.dst) else outcome.gone).append(target.dst)
        return outcome

    def _send(self, dst: ServerID, request: Request, outcome: Outcome) -> None:
        try:
            pidfd = self._messaging.watch(dst)
        except NoSuchProcess as error:
            if dst.vnn in (NONCLUSTER_VNN, self._messaging.server_id.vnn):
                outcome.gone.append(dst)
            else:
                outcome.failures[dst] = str(error)
            return
        self._open.callback(os.close, pidfd)
        target = _Target(dst, pidfd)
        try:
            if request.answer is None:
                status = self._messaging.send(dst, request.type, request.data)
                target.taken = status is not SendStatus.QUEUED
            else:
                self._ask(target, request.type, request.data, request.answer)
        except MsgdError as error:
            if isinstance(error, NoSuchProcess) and not self._messaging.is_alive(dst):
                outcome.gone.append(dst)
            else:
                outcome.failures[dst] = str(error)
        else:
            self._outstanding[dst] = target

    def _send_to_other_nodes(self, request: Request, outcome: Outcome) -> None:
        if request.answer is not None:
            self._messaging.register(request.answer, self._from_other_nodes.append)
        for number, error in self._messaging.send_to_other_nodes(request.type, request.data).items():
            if error is not None:
                outcome.failures[ServerID(0, vnn=number)] = str(error)
            elif request.answer is not None:
                self._nodes_asked.append(number)

    def _ask(self, target: _Target, message_type: int, data: bytes, answer: int) -> None:
        command = self._command
        if command.data_of is not None:
            data = command.data_of(self._messaging.server_id)
        asking = self._messaging.begin_request(
            target.dst,
            message_type,
            data,
            answer,
            partial(self._settled.append, target),
            answer_from_any=command.is_answered_by_child,
        )
        target.request = self._open.enter_context(asking)

    def _wait(self, deadline: float, probe_at: float, outcome: Outcome) -> None:
        poll = select.poll()
        poll.register(self._messaging.fileno(), select.POLLIN)
        by_pidfd = {target.pidfd: target for target in self._outstanding.values()}
        for pidfd in by_pidfd:
            poll.register(pidfd, select.POLLIN)
        self._record_progress(outcome)
        is_over = False
        while (self._outstanding or self._nodes_asked) and not is_over:
            now = time.monotonic()
            if now >= probe_at:
                self._probe()
                probe_at = deadline
            is_over = now >= deadline  # poll once more after the deadline: this process may have been delayed
            ready = poll.poll(max(0.0, min(probe_at, deadline) - now) * 1000)
            ended = [by_pidfd[fd] for fd, _ in ready if fd in by_pidfd]
            late_rounds = 0
            while self._messaging.dispatch() and late_rounds < _LATE_ROUNDS:
                late_rounds += time.monotonic() >= deadline
            self._record_progress(outcome)
            for target in ended:
                poll.unregister(target.pidfd)
                if self._outstanding.pop(target.dst, None) is not None:
                    outcome.gone.append(target.dst)

    def _probe(self) -> None:
        """Send a PING to those of Samba's processes that have not answered (Rule 6)."""
        if not self._command.is_answered_at_once:
            return
        for target in self._outstanding.values():
            if target.request is not None and self._there.has_samba(target.dst.pid):
                asking = self._messaging.begin_request(
                    target.dst, MessageType.PING, b"", MessageType.PONG, partial(self._settled.append, target)
                )
                with contextlib.suppress(MsgdError):  # it is gone, which its pidfd says, or its queue is full
                    target.probe = self._open.enter_context(asking)

    def _record_progress(self, outcome: Outcome) -> None:
        """Record which destinations took the message or answered.  Remove the complete ones from `_outstanding`."""
        for target in self._settled:
            self._record_answer(target, outcome)
        self._settled.clear()
        for message in self._from_other_nodes:
            if message.src.vnn in self._nodes_asked:
                outcome.delivered.append(message.src)
                outcome.answers.append(message)
                self._on_answer(message)
        self._from_other_nodes.clear()
        nothing_waits = not self._messaging.statistics().queued_messages
        for target in list(self._outstanding.values()):
            if target.request is None:
                if not target.taken and nothing_waits:
                    # If it is dead, the message was dropped; the pidfd reports its end.
                    target.taken = self._messaging.is_alive(target.dst)
                if target.taken:
                    del self._outstanding[target.dst]
                    outcome.delivered.append(target.dst)

    def _record_answer(self, target: _Target, outcome: Outcome) -> None:
        """A request or a probe of the target is settled."""
        request = target.request
        if request is None or self._outstanding.pop(target.dst, None) is None:
            return
        if request.answer is not None:
            outcome.delivered.append(target.dst)
            outcome.answers.append(request.answer)
            self._on_answer(request.answer)
        elif request.error is None or isinstance(request.error, NoHandler):
            outcome.unhandled.append(target.dst)
        else:
            outcome.failures[target.dst] = str(request.error)


def raise_descriptor_limit() -> None:
    """Raise the soft limit on descriptors: thousands of processes need a pidfd each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # the present limit then has to suffice
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
