# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Send one control message to some processes, then wait until each has received it and, where due, answered.

Rule 1. The wait ends as soon as nothing is outstanding.
Rule 2. A process that ends is not waited for.  A pidfd of each reports its end at once; nothing is polled on a timer.
        Messaging.watch() opens the pidfd before it checks that the process is alive, so a reused pid is never watched.
Rule 3. Messages that a process sent before it ended are read before it is reported as gone.
Rule 4. A message is taken once it is in the receiver's queue.  If that queue was full, the message waits in this
        process, and it is taken once no message is queued here.
Rule 5. In a cluster, nobody knows how many processes other nodes have.  So after a message to all of them, answers are
        awaited until the timeout.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from msgd.errors import MsgdError, NoSuchProcess
from msgd.messaging import Messaging
from msgd.results import SendStatus
from msgd.tools.msgcontrol.commands import Command
from msgd.wire.header import Message
from msgd.wire.server_id import NONCLUSTER_VNN, ServerID

Process = tuple[int, int]
"""The node and the pid of a process."""

_MOST_NAMED = 10
"""How many processes an error message names; there may be thousands."""

_LATE_ROUNDS = 2
"""Rounds of dispatch after the deadline that found something: a PING to this process itself, and its PONG."""


@dataclass
class Outcome:
    """The outcome of the exchange.

    Each destination is in one of: `delivered`; `gone` (it did not exist, or ended before the exchange was complete);
    `late` (it is alive, but did not take the message or did not answer in time); `failures` (sending failed, with the
    reason).
    """

    command: Command
    lock_directory: str
    timeout: float
    delivered: list[ServerID] = field(default_factory=list)
    gone: list[ServerID] = field(default_factory=list)
    late: list[ServerID] = field(default_factory=list)
    failures: dict[ServerID, str] = field(default_factory=dict)
    answers: list[Message] = field(default_factory=list)

    def fault(self, to_all: bool) -> str | None:
        """One line that says what went wrong, or None if nothing did.

        For a message to all, processes that ended meanwhile do not count, as long as any other process was left.
        """
        faults = list(self.failures.values())
        if self.late:
            done = "answer from" if self.command.answer is not None else "room for a message at"
            faults.append(
                f"no {done} {_listed(self.late)} within {self.timeout:g} seconds;"
                f" stopped, busy, or without a handler for {self.command.name}?"
            )
        if self.gone and not (to_all and (self.delivered or self.late or self.failures)):
            faults.append(
                f"no process {_listed(self.gone)} in {self.lock_directory}, or it ended meanwhile;"
                " `msgcontrol all ping` shows who is there"
            )
        return "; ".join(faults) or None


@dataclass
class _Target:
    """A destination that was sent the message: whether it has received it (`taken`), and whether it has answered."""

    dst: ServerID
    pidfd: int
    taken: bool
    answered: bool = False


class Exchange:
    """Sends one command's message and collects the answers.  Calls `on_answer` for each answer as it arrives."""

    def __init__(
        self, messaging: Messaging, command: Command, on_answer: Callable[[Message], None], *, to_all: bool = False
    ) -> None:
        self._messaging = messaging
        self._to_all = to_all
        self._nodes_asked: Collection[int] = ()
        self._command = command
        self._on_answer = on_answer
        self._targets: dict[Process, _Target] = {}
        self._outstanding: dict[Process, _Target] = {}
        self._new_answers: list[Message] = []

    def run(self, destinations: Sequence[ServerID], data: bytes, timeout: float) -> Outcome:
        """Send to each destination and wait at most `timeout` seconds for delivery and answers."""
        deadline = time.monotonic() + timeout
        outcome = Outcome(self._command, self._messaging.config.lock_directory, timeout)
        answer = self._command.answer
        if answer is not None:
            self._messaging.register(answer, self._store_answer)
        _raise_descriptor_limit()
        try:
            for dst in destinations:
                self._send(dst, data, outcome)
            if self._to_all:
                self._send_to_other_nodes(data, outcome)
            self._wait(deadline, outcome)
        finally:
            for target in self._targets.values():
                os.close(target.pidfd)
            if answer is not None:
                self._messaging.deregister(answer, self._store_answer)
        for target in self._outstanding.values():
            (outcome.late if self._messaging.is_alive(target.dst) else outcome.gone).append(target.dst)
        return outcome

    def _send(self, dst: ServerID, data: bytes, outcome: Outcome) -> None:
        try:
            pidfd = self._messaging.watch(dst)
        except NoSuchProcess as error:
            if self._process(dst)[0] == self._messaging.server_id.vnn:
                outcome.gone.append(dst)
            else:
                outcome.failures[dst] = str(error)
            return
        try:
            status = self._messaging.send(dst, self._command.type, data)
        except MsgdError as error:
            os.close(pidfd)
            if isinstance(error, NoSuchProcess) and not self._messaging.is_alive(dst):
                outcome.gone.append(dst)
            else:
                outcome.failures[dst] = str(error)
        else:
            target = _Target(dst, pidfd, taken=status is not SendStatus.QUEUED)
            key = self._process(dst)
            self._targets[key] = self._outstanding[key] = target

    def _send_to_other_nodes(self, data: bytes, outcome: Outcome) -> None:
        sent = self._messaging.send_to_other_nodes(self._command.type, data)
        if self._command.answer is not None:
            self._nodes_asked = [number for number, error in sent.items() if error is None]
        for number, error in sent.items():
            if error is not None:
                outcome.failures[ServerID(0, vnn=number)] = str(error)

    def _process(self, server_id: ServerID) -> Process:
        """The key of a process: its node and its pid."""
        own = self._messaging.server_id.vnn
        return (own if server_id.vnn == NONCLUSTER_VNN else server_id.vnn), server_id.pid

    def _wait(self, deadline: float, outcome: Outcome) -> None:
        poll = select.poll()
        poll.register(self._messaging.fileno(), select.POLLIN)
        targets_by_pidfd = {target.pidfd: target for target in self._targets.values()}
        for pidfd in targets_by_pidfd:
            poll.register(pidfd, select.POLLIN)
        self._record_progress(outcome)
        is_over = False
        while (self._outstanding or self._nodes_asked) and not is_over:
            left = deadline - time.monotonic()
            is_over = left <= 0  # poll once more after the deadline: this process may have been delayed
            ready = poll.poll(max(0.0, left) * 1000)
            ended = [targets_by_pidfd[fd] for fd, _ in ready if fd in targets_by_pidfd]
            late_rounds = 0
            while self._messaging.dispatch() and late_rounds < _LATE_ROUNDS:
                late_rounds += time.monotonic() >= deadline
            self._record_progress(outcome)
            for target in ended:
                poll.unregister(target.pidfd)
                if self._outstanding.pop(self._process(target.dst), None) is not None:
                    outcome.gone.append(target.dst)

    def _store_answer(self, message: Message) -> None:
        """Store the answer for _record_progress().  An exception here (stdout may be closed) would only be logged."""
        self._new_answers.append(message)

    def _record_progress(self, outcome: Outcome) -> None:
        """Record which destinations took the message or answered.  Remove the complete ones from `_outstanding`."""
        for message in self._new_answers:
            target = self._targets.get(self._process(message.src))
            if target is not None:
                target.taken = target.answered = True
                outcome.answers.append(message)
                self._on_answer(message)
            elif message.src.vnn in self._nodes_asked:
                outcome.delivered.append(message.src)
                outcome.answers.append(message)
                self._on_answer(message)
        self._new_answers.clear()
        nothing_waits = not self._messaging.statistics().queued_messages
        for target in list(self._outstanding.values()):
            if not target.taken and nothing_waits:
                # If it is dead, the message was dropped; the pidfd reports its end.
                target.taken = self._messaging.is_alive(target.dst)
            if target.taken and (target.answered or self._command.answer is None):
                del self._outstanding[self._process(target.dst)]
                outcome.delivered.append(target.dst)


def _listed(processes: Iterable[ServerID]) -> str:
    pids = [str(process) for process in processes]
    more = f" and {len(pids) - _MOST_NAMED} more" if len(pids) > _MOST_NAMED else ""
    return ", ".join(pids[:_MOST_NAMED]) + more


def _raise_descriptor_limit() -> None:
    """Raise the soft limit on descriptors: thousands of processes need a pidfd each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # the present limit then has to suffice
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
