# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A stranger: a process of user nobody that locks whatever it can open, and keeps it locked."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.harness import Channel, Child

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")


def stranger(place: Path, body: Callable[[Channel], None], *, pid: int | None = None) -> Child:
    """A child of user nobody that runs `body`; `place`, a scratch directory, is opened to all."""
    place.chmod(0o755)

    def run(channel: Channel) -> None:
        os.setgroups(())
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        body(channel)

    return Child(run, pid=pid)


def locking(*paths: Path) -> Callable[[Channel], None]:
    """What a stranger runs: it locks all that it can open below these paths, tells what, and holds it until killed.

    A file that it can open gets flock() and a read lock, a directory flock().
    """

    def body(channel: Channel) -> None:
        held = []
        for path in paths:
            below = path.rglob("*") if path.is_dir() else ()
            for one in (path, *below):
                with contextlib.suppress(OSError):
                    if _lock(one):
                        held.append(str(one))
        channel.send(held)
        channel.recv()

    return body


def _lock(path: Path) -> bool:
    """Take flock() and a read lock; the descriptor stays open.  Returns whether one of them was got."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    is_held = False
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_held = True
    if stat.S_ISREG(os.fstat(fd).st_mode):
        with contextlib.suppress(OSError):
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            is_held = True
    return is_held
