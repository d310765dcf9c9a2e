# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Moving to another messages.tdb, when the one in use has been replaced, removed or overwritten by its owner.

Two processes that use different files do not see each other's messages.  So all move to the file that has the name.

Rule 1. A process looks whether its file still has the name, begins as a tdb file does and has not been cut off: when it
is signalled, and else at most twice INTERVAL before it uses the file (the compiled Sender, too, leaves a send to its
twin that often).  It makes the file if none has the name.  One
that has been overwritten or cut off is set aside; nobody reads from it any more, and what waited in it is lost.

Rule 2 (receiver). It writes the inode of the new file into its word FILE and a new value into EPOCH, then takes all
that waits in the old file, and only then takes from the new one.  So what was sent earlier comes first.

Rule 3 (sender). After it has appended a message it reads EPOCH, as it does anyway (sleep.py).  A value that it does not
know makes it compare FILE with its own, and look.  When a sender moves, it carries over what it has left in the old
file for those that use it no longer, and wakes them up.  So a message that came too late for the receiver's last look
into the old file is carried over by its sender: the sender appended it after that look, hence after EPOCH was written.
Nobody carries over what another process has sent.  If the file is replaced again, the two could carry it over to
different files, and a later message of that sender would arrive before it.

Rule 4. Who moves signals all that use another file.  Who opens a destination that does so looks, and signals it.

The slots of a sender (segments.py) keep their keys and numbers, so what the receiver knows of them holds for the new
file.

What can be lost.  What waited in a file that was overwritten or cut off; and what a process that started with the new
file has sent before it ended, if that was before any other process moved, because libtdb empties a file that nobody has
open.

What cannot be survived.  A file that is mapped and cut off is a SIGBUS for whoever touches the missing part before it
looks; and mutexes that are overwritten can hold up or abort a process.  `use mmap = no` has neither.
"""

from __future__ import annotations

import contextlib
import logging
import time

from msgd import events
from msgd.backends.tdb.destinations import Destinations
from msgd.backends.tdb.doorbell import Doorbell
from msgd.backends.tdb.inbox import Inbox
from msgd.backends.tdb.libtdb import tdb_errors
from msgd.backends.tdb.messages_file import Before, FileState, MessagesFile
from msgd.backends.tdb.segments import IDLE
from msgd.backends.tdb.sleep import Sleep
from msgd.backends.tdb.words import FILE
from msgd.errors import BackendUnavailable, TransportError

logger = logging.getLogger("msgd")

INTERVAL = 0.25
"""Seconds for which a file that was found to be the same counts as the same."""


class Mover:
    """Looks after the file, and moves this process to another one."""

    def __init__(
        self,
        file: MessagesFile,
        words: memoryview,
        doorbell: Doorbell,
        sleep: Sleep,
        inbox: Inbox,
        destinations: Destinations,
    ) -> None:
        self._file = file
        self._words = words
        self._doorbell = doorbell
        self._sleep = sleep
        self._inbox = inbox
        self._destinations = destinations
        self._looked = time.monotonic()
        self._tidied = self._looked
        """When we last looked for slots that are idle."""
        self._signals = 0
        """The signals that had come when we last looked."""
        self._is_looking = False
        words[FILE] = file.inode[1]
        file.look = self.look

    @property
    def is_due(self) -> bool:
        """Whether look_if_due() would look."""
        return self._doorbell.signals != self._signals or time.monotonic() - self._looked > INTERVAL

    def look_if_due(self) -> None:
        """Look if a signal has come, or if the last time was more than INTERVAL seconds ago.  Raises TransportError.

        Slots that are idle are deleted along with it (segments.py, rule 3).
        """
        signals, now = self._doorbell.signals, time.monotonic()
        if signals != self._signals or now - self._looked > INTERVAL:
            if self._file.is_unchanged():
                self._looked, self._signals = now, signals
            else:
                self.look()
            if now - self._tidied > IDLE / 2:
                self._tidied = now
                with contextlib.suppress(TransportError):  # the next time will do
                    self._file.repairing(self._destinations.delete_idle_slots)

    def look(self) -> bool:
        """Look whether the file is the same, and move if it is not.  Returns whether we have moved.

        Raises TransportError if there is another file, which cannot be used.
        """
        if self._is_looking:
            return False  # we are in the middle of it, and a signal's handler sends
        self._is_looking = True
        try:
            return self._look()
        finally:
            self._is_looking = False

    def _look(self) -> bool:
        signals, file = self._doorbell.signals, self._file
        try:
            state = FileState.SAME if file.before else file.state()
            if state is not FileState.SAME:
                self._move(state)
            has_moved = file.before is not None
            if file.before is not None:
                self._finish(file.before)
        except (BackendUnavailable, OSError) as error:
            raise TransportError(f"messages.tdb has been replaced, and the new one cannot be used: {error}") from error
        self._looked, self._signals = time.monotonic(), signals
        return has_moved

    def _move(self, state: FileState) -> None:
        """Open the new file, and take what waits in the old one."""
        file = self._file
        is_sound = state is FileState.REPLACED and file.is_sound()
        if state is FileState.DAMAGED:
            file.set_aside()
        opened = file.open()
        self._words[FILE] = opened.inode[1]
        self._sleep.move()
        is_sound = is_sound and self._inbox.drain()
        file.use(opened, Before(file.tdb, file.chains, file.inode, is_sound))

    def _finish(self, before: Before) -> None:
        """Do the rest of it.  If an exception ends it, the next look does all of it again."""
        file = self._file
        file.use_compiled()
        with tdb_errors():
            self._inbox.move(is_lost=not before.is_sound)
            for outgoing in self._destinations.open.values():
                outgoing.move(before)
        file.before = None
        self._destinations.tell_moved()
        logger.warning(
            "messages.tdb was replaced while we used it; we go on in the new one%s",
            "" if before.is_sound else ", and what waited in the old one is lost",
            extra=events.fields(events.FILE_REPLACED),
        )
