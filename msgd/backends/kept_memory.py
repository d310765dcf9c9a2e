# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Long messages without page faults: malloc keeps their memory for the next ones.

Otherwise it returns what is free at the end of the heap to the system, and maps long blocks separately; and for each
message the system zeroes all pages anew.  That took more than half of a receiver's time.

glibc returns less, and maps less separately, from the moment when a block that it had mapped has been freed.  The
block here is never written to, and costs two system calls.  Other mallocs do not mind.  A process keeps up to twice the
block, and no more than it has used.
"""

from __future__ import annotations

import contextlib
import functools

LONG = 1 << 15
"""Bytes; whoever sends or receives a longer message calls keep_memory()."""

_BLOCK = 31 << 20
"""Bytes; glibc learns nothing from a block of 32 MiB."""


@functools.cache
def keep_memory() -> None:
    """Make malloc keep what long messages leave.  Only the first call in a process does anything."""
    with contextlib.suppress(MemoryError):
        bytes(_BLOCK)
