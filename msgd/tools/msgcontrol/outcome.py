# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The outcome of an exchange: who received the message and answered, who did not, and why."""

from __future__ import annotations

from collections.abc import Iterable

from msgd.tools.msgcontrol.command import Command
from msgd.wire.header import Message
from msgd.wire.server_id import ServerID

_MOST_NAMED = 10
"""How many processes an error message names; there may be thousands."""


class Outcome:
    """The outcome of the exchange.

    Each destination is in one of: `delivered`; `gone` (it did not exist, or ended before the exchange was complete);
    `late` (it is alive, but did not take the message or did not answer in time); `unhandled` (it took the message and
    has no handler for it); `failures` (sending failed, with the reason).

    `is_answered`: whether the message is one that is answered.  `place` is the lock directory, for error messages.
    """

    def __init__(self, command: Command, is_answered: bool, place: str, timeout: float) -> None:
        self.command = command
        self.is_answered = is_answered
        self.place = place
        self.timeout = timeout
        self.delivered: list[ServerID] = []
        self.gone: list[ServerID] = []
        self.late: list[ServerID] = []
        self.unhandled: list[ServerID] = []
        self.failures: dict[ServerID, str] = {}
        self.answers: list[Message] = []
        self.text = ""
        """What the receiver has written into the pipe."""

    def fault(self, to_all: bool) -> str | None:
        """One line that says what went wrong, or None if nothing did.

        For a message to all, processes that ended meanwhile do not count, as long as any other process was left; and
        neither do processes without a handler, as long as one has handled it.
        """
        faults = list(dict.fromkeys(self.failures.values()))
        if self.late:
            done = "answer from" if self.is_answered else "room for a message at"
            faults.append(
                f"no {done} {_listed(self.late)} within {self.timeout:g} seconds;"
                f" stopped, busy, or without a handler for {self.command.name}?"
            )
        if self.unhandled and not (to_all and (self.delivered or self.late or self.failures)):
            faults.append(f"no handler for {self.command.name} in {_listed(self.unhandled)}")
        others = self.delivered or self.late or self.unhandled or self.failures
        if self.gone and not (to_all and others):
            faults.append(
                f"no process {_listed(self.gone)} in {self.place}, or it ended meanwhile;"
                " `msgcontrol all ping` shows who is there"
            )
        return "; ".join(faults) or None


def _listed(processes: Iterable[ServerID]) -> str:
    pids = [str(process) for process in processes]
    more = f" and {len(pids) - _MOST_NAMED} more" if len(pids) > _MOST_NAMED else ""
    return ", ".join(pids[:_MOST_NAMED]) + more
