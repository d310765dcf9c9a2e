# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The words of shared memory in which a receiver tells its senders about itself.

They are in the receiver's lock file (presence/shared_words.py).  The receiver alone writes them; senders map them
read-only.  Each word is read and written in one step.  A killed sender therefore never leaves a wrong value behind.
"""

from __future__ import annotations

EPOCH = 0
"""Whether the receiver sleeps: AWAKE, CLOSED, or a number that is new each time it goes to sleep (sleep.py).

Its upper bits (MOVE) count how often the process has moved to another messages.tdb (moving.py); the others (SLEEP) are
0 while it is awake.
"""
AWAKE = 0
CLOSED = 0xFFFFFFFFFFFFFFFF
SLEEP = (1 << 40) - 1
MOVE = SLEEP + 1

TAKING = 1
"""Not 0 while the receiver empties a record (inbox.py)."""

GRANTS = range(2, 8)
"""The unique ids of the senders that have a grant; 0 in an unused word (grants.py)."""

FILE = 8
"""The inode of the messages.tdb that the process uses (moving.py)."""
