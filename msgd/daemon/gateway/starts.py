# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How many connection processes of one user start at the same time.

A start costs far more than anything else that a client can ask of msgd in one call.  A user who connects in a loop
would have all processors busy with starts, and whoever else connects would wait for them.  So MOST processes of a user
start at once; its other clients wait, and start as these get ready, as fast as the machine can.

A process that has started writes its pid into a pipe that the main process reads.  One that ends before that is
reaped.

Rejected: so many starts a second.  No number suits both a slow machine and a fast one.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable

from msgd.daemon.children import Children
from msgd.daemon.gateway.places import is_privileged
from msgd.daemon.loop import Loop

MOST = 2
"""Connection processes of one user that start at the same time; the privileged are not held to it."""

_PID = struct.Struct("i")
_PIDS_READ = 1024


class Starts:
    """Knows which of `children` are starting; `ready` is called when some have started."""

    def __init__(self, loop: Loop, children: Children, ready: Callable[[], None]) -> None:
        self._loop = loop
        self._children = children
        self._ready = ready
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        loop.on_readable(self._read_end, self._note)

    def may_start(self, uid: int) -> bool:
        """Whether another process may be started for this user now."""
        return is_privileged(uid) or self._children.starting_of(uid) < MOST

    def tell(self) -> None:
        """In a connection process, once: it has started."""
        with contextlib.suppress(OSError):  # the main process has ended, or is busy: then our end will tell it
            os.write(self._write_end, _PID.pack(os.getpid()))
        os.close(self._write_end)

    def _note(self) -> None:
        for (pid,) in _PID.iter_unpack(os.read(self._read_end, _PIDS_READ * _PID.size)):
            self._children.note_running(pid)
        self._ready()

    def close(self) -> None:
        """Note no more."""
        self._loop.on_readable(self._read_end, None)
        os.close(self._read_end)
        os.close(self._write_end)

    def abandon(self) -> None:
        """In a forked child: close the copy of the end that the main process reads."""
        os.close(self._read_end)
