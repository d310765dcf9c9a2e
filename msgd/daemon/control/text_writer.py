# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Write a text into a descriptor that another process has passed, without ever waiting for it.

The flags of a descriptor belong to all who have it: O_NONBLOCK on somebody's stdout would be on for him as well.  So a
pipe or a terminal is opened once more, through /proc, and that one is non-blocking.  A file takes what is written.
"""

from __future__ import annotations

import logging
import os
import socket
import stat

logger = logging.getLogger("msgd.daemon")

_FLAGS = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def write_at_once(fd: int, data: bytes) -> int:
    """Write what fits; the number of bytes that are left.  Errors are logged."""
    try:
        return len(data) - _write(fd, data)
    except OSError as error:
        logger.info("writing to the descriptor that came with a message: %s", error.strerror)
        return len(data)


def _write(fd: int, data: bytes) -> int:
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.write(fd, data)
    if stat.S_ISSOCK(mode):
        with socket.socket(fileno=os.dup(fd)) as one:
            return one.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    again = os.open(f"/proc/self/fd/{fd}", _FLAGS)
    try:
        return os.write(again, data)
    finally:
        os.close(again)
