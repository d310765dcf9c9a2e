# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""net.unix.max_dgram_qlen: how many datagrams a socket queues before its sender has to wait."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from msgd.bench.command import BadRequest
from msgd.programs.cli import ENDING_SIGNALS

PATH = Path("/proc/sys/net/unix/max_dgram_qlen")


def read() -> int:
    """What it is now.  Raises OSError."""
    return int(PATH.read_text())


@contextlib.contextmanager
def changed(value: int | None) -> Iterator[int]:
    """Set it (None: leave it) and put it back in the end, however that comes, but for SIGKILL; gives what is in force.

    Only sockets made meanwhile have the new length.  Raises BadRequest if it cannot be set, mostly for want of root's
    rights, and OSError if it cannot be read.
    """
    before = read()
    if value is None:
        yield before
        return
    try:
        try:
            _write(value)
        except OSError as error:
            raise BadRequest(f"net.unix.max_dgram_qlen = {value}: {error.strerror}; it takes root") from None
        yield read()
    finally:
        # A second Ctrl-C waits until it is back.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
        try:
            if read() != before:
                _write(before)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)


def _write(value: int) -> None:
    PATH.write_text(f"{value}\n")
