"""SIGUSR1 as a file descriptor: whoever signals this process makes fileno() readable.

The signal's handler in C writes a byte to Python's wake-up descriptor (signal.set_wakeup_fd) the moment the signal
arrives, so a signal between the last look and the sleep is not lost.  The process has only one such descriptor.  An
asyncio loop that handles signals sets its own, at any time: arm() leaves it in place, the loop then wakes by it, and
the handler in Python, which runs next, rings here.  When nobody else's is set, arm() sets this one.

Who waits for fileno() alone, with another's wake-up descriptor set, would sleep through a signal that comes after the
interpreter has last looked for handlers to run, and before the kernel's sleep: the byte is in the other descriptor, and
the handler does not run.  So while we wait ourselves, the descriptor is ours, whosever it was: begin_listening().

SIGUSR1 kills a process that has no handler.  A signal may still be on its way when the doorbell is taken down, so the
handler stays for the life of the process; a doorbell that comes later recognises it and is not in anybody's way.  The
interpreter takes all handlers away before the process ends: from then on SIGUSR1 is ignored.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from types import FrameType

from msgd.errors import BackendUnavailable


class _Handler:
    """The handler of SIGUSR1: rings the doorbell there is, if any."""

    def __init__(self) -> None:
        self.doorbell: Doorbell | None = None

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        if self.doorbell is not None:
            self.doorbell.ring()  # whose wake-up descriptor got the byte is not known: a loop may have set its own


_handler = _Handler()


def _ignore_at_exit() -> None:
    if signal.getsignal(signal.SIGUSR1) is _handler:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


atexit.register(_ignore_at_exit)


class Doorbell:
    """The process's doorbell; there is one at a time.

    Raises BackendUnavailable if SIGUSR1 is another part's of the program, or outside the main thread.
    """

    def __init__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise BackendUnavailable("messaging type tdb can be opened in the main thread only: it handles SIGUSR1")
        if signal.getsignal(signal.SIGUSR1) not in (signal.SIG_DFL, signal.SIG_IGN, _handler):
            raise BackendUnavailable(
                "messaging type tdb needs SIGUSR1, which this program handles already; use dgram or stream"
            )
        if _handler.doorbell is not None:
            raise BackendUnavailable("this process has an endpoint of messaging type tdb in another directory already")
        self.rung = False
        """Whether there may be bytes to drain."""
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGUSR1, _handler)
        signal.siginterrupt(signal.SIGUSR1, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        _handler.doorbell = self
        self.arm()

    def fileno(self) -> int:
        """The descriptor that polls readable once the bell has rung."""
        return self._read_fd

    def arm(self) -> None:
        """To be called before a sleep that is others': makes sure that a signal from now on is not slept through."""
        self.end_listening(self.begin_listening())

    def begin_listening(self) -> int:
        """From now on a signal makes fileno() readable at once; what is returned is for end_listening().

        In between one looks once more, and sleeps.
        """
        try:
            return signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        except ValueError:
            return -1  # outside the main thread: what the main thread set stays

    def end_listening(self, previous: int) -> None:
        """Have the wake-up descriptor that was there set again, if there was another's."""
        if previous not in (self._write_fd, -1):
            self._give_back(previous)

    def _give_back(self, wakeup_fd: int) -> None:
        """Set the program's wake-up descriptor again, and hand on the signals that came in between."""
        try:
            signal.set_wakeup_fd(wakeup_fd)
        except (OSError, ValueError):
            return  # it has been closed: nobody's any more
        with contextlib.suppress(BlockingIOError):
            came = os.read(self._read_fd, 4096)
            os.write(self._write_fd, b"\0")
            others = came.translate(None, bytes((0, signal.SIGUSR1)))
            if others:
                os.write(wakeup_fd, others)

    def ring(self) -> None:
        """Make fileno() readable."""
        self.rung = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_fd, b"\0")

    def drain(self) -> None:
        """Take what has rung so far; to be called before looking for the messages it announced."""
        self.rung = False
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read_fd, 4096)) == 4096:
                pass

    def close(self) -> None:
        """Take the doorbell down; the handler stays and does nothing."""
        _handler.doorbell = None
        with contextlib.suppress(ValueError):
            previous = signal.set_wakeup_fd(-1)
            if previous not in (self._write_fd, -1):
                signal.set_wakeup_fd(previous)
        os.close(self._read_fd)
        os.close(self._write_fd)
