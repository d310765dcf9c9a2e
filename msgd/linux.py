# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What Linux offers and Python's standard library does not name: each struct and each call is declared once, here."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import time
from typing import NamedTuple, Self

LONGEST_WAIT = 1e6
"""Seconds that one wait in the kernel may last: poll() takes no more than weeks.  Longer waits are made of several."""


class Credentials(NamedTuple):
    """struct ucred (unix(7)): who is at the other end of a socket, or has sent a datagram, as the kernel says."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Read the ancillary data of SCM_CREDENTIALS; struct.error if it has another size than CREDENTIALS_SIZE."""
        return cls(*_UCRED.unpack(packed))

    @classmethod
    def of_peer(cls, connected: socket.socket) -> Self:
        """Ask for SO_PEERCRED: the process at the other end at the moment it connected, or began to listen."""
        return cls.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS_SIZE))


_UCRED = struct.Struct("iII")
CREDENTIALS_SIZE = _UCRED.size

_TIMEVAL = struct.Struct("ll")


def set_send_timeout(blocking: socket.socket, seconds: float) -> None:
    """Set SO_SNDTIMEO: how long send() and connect() wait at most, a microsecond at least (0 would be for ever)."""
    whole, rest = divmod(seconds, 1)
    timeval = _TIMEVAL.pack(int(whole), max(1, int(rest * 1e6)))
    blocking.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def wait_readable(fd: int, timeout: float | None, watched: int = -1) -> bool:
    """Wait until `fd` or `watched` (-1: there is none) is readable, at most `timeout` seconds; whether `watched` is."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if watched >= 0:
        poll.register(watched, select.POLLIN)
    return any(ready == watched for ready, _ in poll.poll(None if timeout is None else timeout * 1000))


class TimerFd:
    """A timer as a file descriptor (timerfd_create(2), in Python's os module from 3.13 on).

    It makes fileno() readable once a time has passed; nothing is running at first.  Raises OSError.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def fileno(self) -> int:
        """The descriptor, readable from the end of the time until start() or acknowledge()."""
        return self._fd

    def start(self, seconds: float) -> None:
        """Let the time end so many seconds from now; this replaces any time that was set before."""
        nanoseconds = max(1, int(seconds * 1e9))  # 0 would stop the timer
        interval_and_value = (ctypes.c_long * 4)(0, 0, *divmod(nanoseconds, 1_000_000_000))
        self._libc.timerfd_settime(self._fd, 0, interval_and_value, None)

    def acknowledge(self) -> None:
        """Make the descriptor unreadable if the time has ended."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
