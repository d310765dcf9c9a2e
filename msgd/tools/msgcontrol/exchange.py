# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""One control message to some processes, and the wait for what is due: that each has taken it, and has answered.

The wait is over as soon as nothing is due any more.  A process that ends is not waited for: a pidfd of each tells at
once, there is no polling.  The pidfd is opened before the process is found alive in the directory, so a reused pid is
never watched in its stead.  What a process sent before it ended is read before it is called gone.

A message counts as taken when it is in the receiver's queue.  One that found that queue full waits in this process;
it has been taken when nothing waits here any more.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from msgd.errors import MsgdError, NoSuchProcess
from msgd.messaging import Messaging
from msgd.results import SendStatus
from msgd.tools.msgcontrol.commands import Command
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

_MOST_NAMED = 10
"""Processes that a complaint names; there may be thousands."""


@dataclass
class Outcome:
    """What became of the message.

    Each destination is in `delivered`, `gone` (was not there, or ended before all was done), `late` (lives, and has
    not taken the message or not answered in time), or `failures` (could not be sent to; with the reason).
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
        """One line on what is not as it was asked for, None if all is.

        In a message to all, those that ended meanwhile do not count, as long as somebody was left.
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
    dst: ServerID
    pidfd: int
    taken: bool
    answered: bool = False


class Exchange:
    """Sends one command's message and collects the answers.  `on_answer` is called for each as it comes."""

    def __init__(self, messaging: Messaging, command: Command, on_answer: Callable[[Message], None]) -> None:
        self._messaging = messaging
        self._command = command
        self._on_answer = on_answer
        self._targets: dict[int, _Target] = {}
        self._due: dict[int, _Target] = {}
        self._new_answers: list[Message] = []

    def run(self, destinations: Sequence[ServerID], data: bytes, timeout: float) -> Outcome:
        """Send to each destination and wait at most `timeout` seconds for what is due."""
        deadline = time.monotonic() + timeout
        outcome = Outcome(self._command, self._messaging.config.lock_directory, timeout)
        answer = self._command.answer
        if answer is not None:
            self._messaging.register(answer, self._take)
        _allow_descriptors()
        try:
            for dst in destinations:
                self._send(dst, data, outcome)
            self._wait(deadline, outcome)
        finally:
            for target in self._targets.values():
                os.close(target.pidfd)
            if answer is not None:
                self._messaging.deregister(answer, self._take)
        for target in self._due.values():
            (outcome.late if self._messaging.is_alive(target.dst) else outcome.gone).append(target.dst)
        return outcome

    def _send(self, dst: ServerID, data: bytes, outcome: Outcome) -> None:
        try:
            pidfd = self._messaging.watch(dst)
        except NoSuchProcess:
            outcome.gone.append(dst)
            return
        try:
            status = self._messaging.send(dst, self._command.type, data)
        except NoSuchProcess:
            os.close(pidfd)
            outcome.gone.append(dst)
        except MsgdError as error:
            os.close(pidfd)
            outcome.failures[dst] = str(error)
        else:
            target = _Target(dst, pidfd, taken=status is not SendStatus.QUEUED)
            self._targets[dst.pid] = self._due[dst.pid] = target

    def _wait(self, deadline: float, outcome: Outcome) -> None:
        poll = select.poll()
        poll.register(self._messaging.fileno(), select.POLLIN)
        targets_by_pidfd = {target.pidfd: target for target in self._targets.values()}
        for pidfd in targets_by_pidfd:
            poll.register(pidfd, select.POLLIN)
        self._settle(outcome)
        is_over = False
        while self._due and not is_over:
            left = deadline - time.monotonic()
            is_over = left <= 0  # this look is the last one: we may have been kept from looking in time
            ready = poll.poll(max(0.0, left) * 1000)
            ended = [targets_by_pidfd[fd] for fd, _ in ready if fd in targets_by_pidfd]
            while self._messaging.dispatch() and time.monotonic() < deadline:
                pass
            self._settle(outcome)
            for target in ended:
                poll.unregister(target.pidfd)
                if self._due.pop(target.dst.pid, None) is not None:
                    outcome.gone.append(target.dst)

    def _take(self, message: Message) -> None:
        """A handler: only notes the answer, since what a handler raises (a closed stdout) goes to the log."""
        self._new_answers.append(message)

    def _settle(self, outcome: Outcome) -> None:
        """Note who has taken the message and who has answered; those of whom nothing is due any more are done."""
        for message in self._new_answers:
            target = self._targets.get(message.src.pid)
            if target is not None:
                target.taken = target.answered = True
                outcome.answers.append(message)
                self._on_answer(message)
        self._new_answers.clear()
        nothing_waits = not self._messaging.statistics().queued_messages
        for target in list(self._due.values()):
            if not target.taken and nothing_waits:
                target.taken = self._messaging.is_alive(target.dst)  # else it was given up; the pidfd will tell
            if target.taken and (target.answered or self._command.answer is None):
                del self._due[target.dst.pid]
                outcome.delivered.append(target.dst)


def _listed(processes: Iterable[ServerID]) -> str:
    pids = [str(process) for process in processes]
    more = f" and {len(pids) - _MOST_NAMED} more" if len(pids) > _MOST_NAMED else ""
    return ", ".join(pids[:_MOST_NAMED]) + more


def _allow_descriptors() -> None:
    """A pidfd for each of thousands of processes may be more than the soft limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # then what is allowed has to do
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
