# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How this process sleeps until a message arrives, and how its senders know that they must wake it up.

Rule 1 (receiver). Before it sleeps, it writes a new number into its word EPOCH, and then checks its records once more.
It sleeps only if they are empty.

Rule 2 (sender). It appends its message, and then reads the word.  If the word holds an epoch for which it has not
signalled yet, it sends SIGUSR1 (destination.py).

Why no message is slept through.  The receiver's check and the sender's append both take the lock of the record in tdb.
If the check came first, the epoch was written before the check released that lock; so the sender reads it, and signals.
If the append came first, the check finds the message.  The same is true for a segment.

Why one signal per sender and epoch is enough.  A receiver that wakes up checks everything before it sleeps again, and
then writes a new epoch.  Only the receiver writes the word, and each sender signals for itself.  So a sender that is
killed before it signals misleads no other sender.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable

from msgd.backends.tdb.doorbell import Doorbell
from msgd.backends.tdb.words import AWAKE, EPOCH, MOVE, SLEEP
from msgd.linux import new_poll, wait_readable


class Sleep:
    """The sleep of this process.

    `has_messages` checks its records and never raises RuntimeError; `spin` does so as often as the Spinner says.
    """

    def __init__(
        self,
        doorbell: Doorbell,
        words: memoryview,
        has_messages: Callable[[], bool],
        spin: Callable[[], bool],
    ) -> None:
        self._doorbell = doorbell
        self._words = words
        self._has_messages = has_messages
        self._spin = spin
        self._awake = self._epoch = AWAKE
        """What the word EPOCH holds while we are awake, and what it held when we slept last."""
        self._poll_class: object = getattr(select, "poll", self)
        self._poll = new_poll()
        """What wait_readable() would make for each sleep, as long as nobody has patched select since."""
        self._poll.register(doorbell.fileno(), select.POLLIN)
        self.is_watched = False
        """Whether the program waits for fileno() in a loop of its own."""

    def fileno(self) -> int:
        """The descriptor that polls readable when there is something to receive."""
        if not self.is_watched:
            self.is_watched = True
            self._prepare()
        return self._doorbell.fileno()

    def begin_work(self) -> None:
        """Call this before the records are checked: no sender needs to signal now."""
        self._words[EPOCH] = self._awake
        if self.is_watched or self._doorbell.rung:
            self._doorbell.drain()

    def end_work(self) -> None:
        """Call this after begin_work(), when the program may wait for fileno() again."""
        if self.is_watched:
            self._prepare()

    def stays_prepared(self) -> bool:
        """Whether nothing has come since fileno() was prepared for a sleep of the program, so that it still is.

        Then begin_work() and end_work() can be left out: the epoch is the announced one, whoever sends signals, and no
        byte is in the pipe.  A program that dispatches between other work mostly finds nothing; this halves its cost.
        """
        if not self.is_watched or self._words[EPOCH] != self._epoch or not self._epoch & SLEEP:
            return False
        if getattr(select, "poll", None) is not self._poll_class or self._poll.poll(0) or self._has_messages():
            return False
        self._doorbell.arm()
        return True

    def wait(self, timeout: float | None, watched: int = -1) -> bool:
        """Sleep until a message arrives or the descriptor `watched` is readable; return whether that is readable."""
        if self._spin():
            return False
        previous = self._doorbell.begin_listening()
        try:
            self.announce()
            if self._has_messages():
                return False
            if watched < 0 and getattr(select, "poll", None) is self._poll_class:
                self._poll.poll(None if timeout is None else timeout * 1000)
                is_readable = False
            else:
                is_readable = wait_readable(self._doorbell.fileno(), timeout, watched)
        finally:
            self._doorbell.end_listening(previous)
        self._doorbell.rung = True  # outside the main thread, the handler may not have run yet
        return is_readable

    def wait_until(self, is_done: Callable[[], bool], fds: Callable[[], Iterable[int]], timeout: float) -> None:
        """Sleep until `is_done`, a signal, the end of `timeout`, or one of `fds` is readable; new messages do not
        count.

        A process that makes `is_done` true must signal us after that.
        """
        self._doorbell.drain()
        previous = self._doorbell.begin_listening()
        try:
            self.announce()
            if not is_done():
                poll = new_poll()
                for fd in (self._doorbell.fileno(), *fds()):
                    poll.register(fd, select.POLLIN)
                poll.poll(timeout * 1000)
                is_done()
        finally:
            self._doorbell.end_listening(previous)
            self._doorbell.drain()
            self._words[EPOCH] = self._awake
            self.end_work()

    def move(self) -> None:
        """We move to another messages.tdb: from now on senders find an epoch that they do not know."""
        self._words[EPOCH] = self._awake = self._epoch = (self._awake & ~SLEEP) + MOVE
        self._doorbell.ring()  # a thread of ours may be asleep, and nobody would signal it

    def announce(self) -> None:
        """From now on senders signal."""
        self._epoch += 1
        self._words[EPOCH] = self._epoch

    def _prepare(self) -> None:
        """Prepare for a sleep outside of our control: fileno() is readable now or a sender will signal."""
        self._doorbell.arm()
        self.announce()
        if self._has_messages():
            self._doorbell.ring()
