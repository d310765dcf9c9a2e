# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The bound on a connection process's memory (msgd:client memory).

A process sets it for itself.  The main process may set a lower one, the share of the memory of its user (shares.py).
"""

from __future__ import annotations

import resource
import sys


def limit_memory(size: int) -> None:
    """Limit private writable memory to `size` bytes; what is mapped from files does not count.

    Only the soft limit is set, so that a reload may raise it again.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def memory_limit() -> int:
    """The limit in force, in bytes; a very large number if there is none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
