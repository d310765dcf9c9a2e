# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Linux structures and calls that Python's standard library lacks, each declared once."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import importlib
import os
import select
import socket
import struct
import sys
import threading
import time
from typing import Any, NamedTuple, Self, cast

_libc = ctypes.CDLL(None, use_errno=True)
_libc.send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
_libc.send.restype = ctypes.c_ssize_t

LONGEST_WAIT = 1e6
"""The longest single wait in the kernel, in seconds: poll() accepts a few weeks at most.  Callers repeat it."""


class Credentials(NamedTuple):
    """struct ucred (unix(7)): the kernel's word on who is at the other end of a socket, or has sent a datagram."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Unpack the ancillary data of SCM_CREDENTIALS.  Raises struct.error unless it has CREDENTIALS_SIZE bytes."""
        return cls(*_UCRED.unpack(packed))

    @classmethod
    def of_peer(cls, connected: socket.socket) -> Self:
        """Get SO_PEERCRED: the process at the other end, as it was when it connected or began to listen."""
        return cls.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS_SIZE))


_UCRED = struct.Struct("iII")
CREDENTIALS_SIZE = _UCRED.size

_TIMEVAL = struct.Struct("ll")


def set_send_timeout(blocking: socket.socket, seconds: float) -> None:
    """Set SO_SNDTIMEO, the longest time that send() and connect() block; at least 1 us, since 0 means no limit."""
    whole, rest = divmod(seconds, 1)
    timeval = _TIMEVAL.pack(int(whole), max(1, int(rest * 1e6)))
    blocking.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def send_blocking(connected: socket.socket, data: bytes, timeout: float) -> None:
    """Send in one call that blocks until there is room, at most `timeout` seconds.

    Raises OSError: BlockingIOError after the timeout, InterruptedError after a signal.  socket.send() cannot be used:
    after a signal it starts again with the whole timeout.
    """
    set_send_timeout(connected, timeout)
    if _libc.send(connected.fileno(), data, len(data), socket.MSG_NOSIGNAL) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_FLOCK = struct.Struct("hhqqi0q")
"""struct flock with 64-bit offsets (fcntl(2)): type, whence, start, length, pid."""

_BUSY = frozenset((errno.EAGAIN, errno.EACCES))


def try_lock(fd: int, offset: int) -> bool:
    """Lock one byte of an open file for writing, for as long as it is open (F_OFD_SETLK).

    Returns False if another opening of the file has the byte locked.  Raises OSError.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def descriptor_of(device: int, inode: int) -> int | None:
    """A descriptor of this process that refers to this file; None if there is none.  Raises OSError."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
            status = os.stat(f"/proc/self/fd/{name}")
            if (status.st_dev, status.st_ino) == (device, inode):
                return int(name)
    return None


def wait_readable(fd: int, timeout: float | None, watched: int = -1) -> bool:
    """Wait until `fd` or `watched` is readable, and return whether `watched` is.

    `timeout` is in seconds, None for no limit.  `watched` is -1 if there is none.  Under monkey patching it is the
    patched module that waits, so that other green threads run; eventlet leaves select.select() only.
    """
    if not hasattr(select, "poll"):
        readable, _, _ = select.select([fd] if watched < 0 else [fd, watched], [], [], timeout)
        return watched in readable
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if watched < 0:
        poll.poll(None if timeout is None else timeout * 1000)
        return False
    poll.register(watched, select.POLLIN)
    return any(ready == watched for ready, _ in poll.poll(None if timeout is None else timeout * 1000))


def unix_socket(kind: int, fileno: int | None = None) -> socket.socket:
    """A new AF_UNIX socket, or an object for the open one `fileno`.

    It is the interpreter's own kind under gevent's and eventlet's monkey patching too: theirs would switch to another
    green thread in the middle of a call that is made under a lock.
    """
    return cast("socket.socket", _socket_class(socket.AF_UNIX, kind, fileno=fileno))


def new_poll() -> select.poll:
    """A new poll object: gevent's where it has put one in the interpreter's place, so that other green threads run."""
    return select.poll() if hasattr(select, "poll") else cast("select.poll", _original("select", "poll")())


def new_epoll() -> select.epoll:
    """A new epoll object, under gevent's and eventlet's monkey patching too: they take select.epoll away."""
    return cast("select.epoll", _epoll_class())


def _original(module: str, name: str) -> Any:
    """What the interpreter has under this name, whether or not gevent or eventlet has put something in its place."""
    if "gevent.monkey" in sys.modules:
        return sys.modules["gevent.monkey"].get_original(module, name)
    if "eventlet.patcher" in sys.modules:
        return getattr(sys.modules["eventlet.patcher"].original(module), name)
    return getattr(importlib.import_module(module), name)


_epoll_class = _original("select", "epoll")
_socket_class = _original("socket", "socket")


class EventFd:
    """A descriptor that any thread can make readable (eventfd(2))."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.RLock()
        self.is_set = False

    def fileno(self) -> int:
        """The descriptor, readable from set() to clear()."""
        return self._fd

    def set(self) -> None:
        """Make it readable."""
        with self._lock:  # a thread that wakes another may come after that has closed it
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)
        self.is_set = True  # last: whoever sees it finds the descriptor readable, and clears both

    def clear(self) -> None:
        """Make it unreadable."""
        self.is_set = False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            fd, self._fd = self._fd, -1
        os.close(fd)


class TimerFd:
    """A timer as a file descriptor: timerfd_create(2), which Python has only from 3.13 on.

    fileno() becomes readable when the timer expires.  A new timer is not running.  Raises OSError.
    """

    def __init__(self) -> None:
        self._fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def fileno(self) -> int:
        """The descriptor.  It is readable from the expiry until start() or acknowledge()."""
        return self._fd

    def start(self, seconds: float) -> None:
        """Let the timer expire in that many seconds, instead of any time that was set before."""
        nanoseconds = max(1, int(seconds * 1e9))  # 0 would disarm the timer
        interval_and_value = (ctypes.c_long * 4)(0, 0, *divmod(nanoseconds, 1_000_000_000))
        _libc.timerfd_settime(self._fd, 0, interval_and_value, None)

    def acknowledge(self) -> None:
        """Make the descriptor unreadable again if the timer has expired."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)
