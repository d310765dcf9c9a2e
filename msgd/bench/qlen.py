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
    """Return the present value.  Raises OSError."""
    return int(PATH.read_text())


@contextlib.contextmanager
def changed(value: int | None) -> Iterator[int]:
    """Set the value for the `with` block and restore it afterwards; yield the value in force.  None leaves it as it is.

    Whatever ends the block restores the value, except SIGKILL.  Only sockets made in the block have the new length.
    Raises BadRequest if the value cannot be set, usually because that needs root, and OSError if it cannot be read.
    """
    before = read()
    if value is None:
        yield before
        return
    try:
        try:
            _write(value)
        except OSError as error:
            raise BadRequest(f"net.unix.max_dgram_qlen = {value}: {error.strerror}; setting it needs root") from None
        yield read()
    finally:
        # A second Ctrl-C must not prevent the value from being restored.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
        try:
            if read() != before:
                _write(before)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)


def _write(value: int) -> None:
    PATH.write_text(f"{value}\n")
