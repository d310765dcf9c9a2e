# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Grants: which senders may append to a receiver's record PID/<pid> without taking its lock.

No append may outgrow the record (messages_file.py, rule 1).  A sender could take the lock of the record for every
message, check the depth, and append.  But if a mutex is held, the next process to want it sleeps and must be woken up,
which costs ten times what is done under the lock.  So the receiver gives a few of its senders a grant.  The depth of
the record is the number of bytes in it.

Rule 1 (receiver).  It grants by writing the sender's unique id into one of the words GRANTS.  It takes a grant back
from a dead sender only.

Rule 2 (sender with a grant).  It checks the depth without the lock.  If there is room for the message up to DEEP, it
may append QUOTA bytes, that message included, before it checks again.  If there is no room, it has no quota, and goes
on under rule 3.

Rule 3 (every sender).  Under the lock of the record it may append one message that makes the record no deeper than
DEEPEST, or than DEEP if it has a grant; a batch of messages counts as one.  If there is no room for that, it may
append one "continued" record, which takes it to a segment, as long as the record is not deeper than CROWDED.

Why the record never overflows.  Consider the last check that found room.  The depth was at most DEEPEST then.  After
it, each sender with a grant can append one quota, and the holder of the lock can append one message that does not
exceed DEEPEST.  One grant can change hands between two times that the receiver empties the record, so one quota more
is counted: QUOTAS in all.  "Continued" records come on top of that, up to CROWDED.  Behind the last one of them, all
the quotas still fit: CROWDED + CONTINUATION_SIZE + QUOTAS <= ROOM.

Why messages alone never crowd the record.  They make it at most DEEPEST + QUOTAS deep.  Below CROWDED, that leaves
room for the "continued" records of ANNOUNCERS senders: DEEPEST + QUOTAS + ANNOUNCERS * CONTINUATION_SIZE <= CROWDED.
So a sender is refused only if more senders than that have announced segments which the receiver has not taken note of
yet.  This is what limits QUOTA.

Why the two bounds differ.  A sender that floods has a grant, and each of its appends copies the record, so its bound
stays low.  Those without a grant send few messages each, and to continue in a segment costs them and the receiver more
than the copy: a hundred answers to a broadcast have 7 KiB, those to two of them 14 KiB.
"""

from __future__ import annotations

import contextlib
import time

from msgd.backends.tdb.messages_file import ROOM
from msgd.backends.tdb.words import GRANTS
from msgd.errors import TransportError
from msgd.presence import Presence
from msgd.wire.server_id import ANY_UNIQUE_ID, ServerID
from msgd.wire.tdb_record import CONTINUATION_SIZE

QUOTA = 1024
"""Bytes that a sender with a grant may append from one check of the depth to the next."""
QUOTAS = (len(GRANTS) + 1) * QUOTA
"""Bytes that all of them may append after the last check that found room."""
DEEP = 8192
"""Bytes in PID/<pid> beyond which a sender with a grant appends no message."""
DEEPEST = 16384
"""Bytes in PID/<pid> beyond which nobody appends a message."""
CROWDED = ROOM - QUOTAS - CONTINUATION_SIZE
"""Bytes in PID/<pid> beyond which no "continued" record is appended."""
ANNOUNCERS = (CROWDED - DEEPEST - QUOTAS) // CONTINUATION_SIZE
"""Senders that can announce a segment in PID/<pid> whatever messages are in it: some two hundred."""

CHECK_INTERVAL = 1.0
"""Seconds between two checks whether a sender that has a grant is still alive."""


def has_grant(words: memoryview, unique_id: int) -> bool:
    """Whether the receiver with these shared words has given a grant to the sender with this unique id."""
    return unique_id in words[GRANTS.start : GRANTS.stop].tolist()


class Grants:
    """The grants that this process has given to its senders."""

    def __init__(self, words: memoryview, presence: Presence) -> None:
        self._words = words
        self._presence = presence
        self.given: dict[int, tuple[int, ServerID]] = {}
        """The word and the sender of each grant, by the sender's unique id."""
        self._checked = 0.0

    def give(self, source: ServerID) -> None:
        """Give this sender a grant, if it has none and one is free or belongs to a dead sender."""
        unique_id = source.unique_id
        if unique_id in self.given or unique_id in ANY_UNIQUE_ID:
            return
        if len(self.given) == len(GRANTS):
            self._take_one_from_the_dead()
        free = set(GRANTS).difference(word for word, _ in self.given.values())
        if free:
            word = min(free)
            self.given[unique_id] = word, source
            self._words[word] = unique_id

    def _take_one_from_the_dead(self) -> None:
        now = time.monotonic()
        if now - self._checked <= CHECK_INTERVAL:
            return
        self._checked = now
        with contextlib.suppress(TransportError):  # no descriptor is left for the check
            sources = (source for _, source in self.given.values())
            dead = next((source for source in sources if not self._presence.is_alive(source)), None)
            if dead is not None:
                del self.given[dead.unique_id]
