"""A timer as a file descriptor: timerfd, which Python's os module has from 3.13 on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time


class Timer:
    """Makes fileno() readable once a time has passed; nothing is running at first.  Raises OSError."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def fileno(self) -> int:
        """The descriptor, readable from the end of the time until start() or acknowledge()."""
        return self._fd

    def start(self, seconds: float) -> None:
        """Let the time end so many seconds from now, and no other time that was set before."""
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
