# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The memory that the connection processes of one user share (msgd:user memory).

Rule 1.  Each process may use what it has been forked with, and its share beyond that.  The kernel holds it to that
(RLIMIT_DATA), and the main process sets the limit of a running process, too: each time one of the same user starts or
ends, the memory is divided again.

Rule 2.  What a process uses already stays its own.  The others share what is left, in equal parts.

Rule 3.  Where less than LEAST would be left for each, no further process is started.

Rule 4.  A process that an earlier main process has started is not limited again, but what it uses counts.  It cannot
be waited for, so its pid could be another's by now.

Rejected: a smaller `msgd:client memory` for everybody.  The largest message that a client may be sent takes several
times its size, in a single client just as in one of many.
"""

from __future__ import annotations

import contextlib
import os
import resource

from msgd.config import Config
from msgd.daemon.children import Children

LEAST = 16 << 20
"""Bytes that a connection process may use beyond what it has been forked with, at least: its backlog, and requests."""

_PAGE = os.sysconf("SC_PAGESIZE")


class UserMemory:
    """Divides the memory of each user among its processes in `children`."""

    def __init__(self, children: Children) -> None:
        self._children = children

    def limit_for_another(self, uid: int, config: Config) -> int | None:
        """The limit of a process that is to be started for this user, in bytes; None if no memory is left for it."""
        share = self._divide(uid, config, newcomers=1)
        return None if share < LEAST else min(config.client_memory, _data_of(os.getpid()) + share)

    def divide(self, uid: int, config: Config) -> None:
        """Divide the memory of this user again: one of its processes has ended, or the settings have changed."""
        self._divide(uid, config, newcomers=0)

    def _divide(self, uid: int, config: Config, newcomers: int) -> int:
        """Set the limits of the user's processes.  Returns the share of each."""
        pids, base = self._children.pids_of(uid), _data_of(os.getpid())
        adopted = sum(max(0, _data_of(pid) - base) for pid in self._children.adopted_pids_of(uid))
        share = config.user_memory
        for _ in range(2):  # once more, for what they have taken before the limits were set
            used = [max(0, _data_of(pid) - base) for pid in pids]
            share = _equal_share(config.user_memory - adopted, used, len(pids) + newcomers)
            for pid in pids:
                _set_limit(pid, min(config.client_memory, base + max(share, LEAST)))
        return share


def _equal_share(memory: int, used: list[int], number: int) -> int:
    """What each of `number` processes may use, so that all together use no more than `memory`.

    `used` is what those that run use already.  Where one uses more than its share, the others have less.
    """
    for most in sorted(used, reverse=True):
        if most * number <= memory:
            break
        memory -= most
        number -= 1
    return max(0, memory) // max(1, number)


def _data_of(pid: int) -> int:
    """The private writable memory of a process, in bytes, as RLIMIT_DATA counts it (and its stack); 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[5]) * _PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _set_limit(pid: int, size: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.prlimit(pid, resource.RLIMIT_DATA, (soft, hard))
