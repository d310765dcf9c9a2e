# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""SIGUSR1 as a file descriptor: a signal to this process makes fileno() readable.

Rule 1. A signal between the last check for messages and the sleep is not lost.  Python's C handler writes a byte to the
wake-up descriptor (signal.set_wakeup_fd) the moment the signal arrives, whether the interpreter runs or not.

Rule 2. The program's own wake-up descriptor stays in place while the program runs.  A process has only one, and an
asyncio loop that handles signals sets its own, at any time.  arm() leaves that one alone: the loop wakes up through it,
the Python handler runs next, and the handler rings here.  If no other descriptor is set, arm() sets ours.

Rule 3. While this process itself waits for fileno(), the wake-up descriptor is ours, whoever had set one:
begin_listening() and end_listening().  Otherwise there would be a gap: if the signal arrives after the interpreter last
checked for handlers to run and before the kernel puts the process to sleep, the byte goes into the other descriptor,
the handler does not run, and the process sleeps through it.  end_listening() passes the other signals on to the
descriptor that it puts back.

Rule 4. SIGUSR1 never kills the process.  A process without a handler dies of SIGUSR1, and a signal may still be on its
way when the doorbell is closed.  So the handler stays for the life of the process; a later doorbell uses it again.  The
interpreter removes all handlers before the process ends: from then on SIGUSR1 is ignored.
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
    """The handler of SIGUSR1: rings the open doorbell, if there is one."""

    def __init__(self) -> None:
        self.doorbell: Doorbell | None = None

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        doorbell = self.doorbell
        if doorbell is None:
            return
        if doorbell.is_listening:  # then the byte of the C handler is in the pipe already
            doorbell.rung = True
        else:
            doorbell.ring()  # an event loop may have set another wake-up descriptor


_handler = _Handler()


def _ignore_at_exit() -> None:
    if signal.getsignal(signal.SIGUSR1) is _handler:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


atexit.register(_ignore_at_exit)


class Doorbell:
    """The doorbell of this process; only one can be open at a time.

    Raises BackendUnavailable if the program handles SIGUSR1 itself, and outside the main thread.
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
        """Whether there may be bytes in the pipe."""
        self.is_listening = False
        """Whether the wake-up descriptor is ours for certain."""
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGUSR1, _handler)
        signal.siginterrupt(signal.SIGUSR1, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        _handler.doorbell = self
        self.arm()

    def fileno(self) -> int:
        """The descriptor that polls readable after a signal."""
        return self._read_fd

    def arm(self) -> None:
        """Call this before the program waits for fileno() in its own loop: from now on a signal ends that wait."""
        self.end_listening(self.begin_listening())

    def begin_listening(self) -> int:
        """From now on a signal makes fileno() readable at once.  Pass the returned descriptor to end_listening().

        After this call, check once more for messages, then sleep.
        """
        try:
            previous = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        except ValueError:
            return -1  # not in the main thread: what the main thread set stays
        self.is_listening = True
        return previous

    def end_listening(self, previous: int) -> None:
        """Put the program's wake-up descriptor back, if it had set one."""
        self.is_listening = False
        if previous not in (self._write_fd, -1):
            self._restore(previous)

    def _restore(self, wakeup_fd: int) -> None:
        """Set the program's wake-up descriptor, and pass on the signals that arrived in between."""
        try:
            signal.set_wakeup_fd(wakeup_fd)
        except (OSError, ValueError):
            return  # it has been closed in the meantime
        with contextlib.suppress(BlockingIOError):
            arrived = os.read(self._read_fd, 4096)
            os.write(self._write_fd, b"\0")
            others = arrived.translate(None, bytes((0, signal.SIGUSR1)))
            if others:
                os.write(wakeup_fd, others)

    def ring(self) -> None:
        """Make fileno() readable."""
        self.rung = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_fd, b"\0")

    def drain(self) -> None:
        """Empty the pipe.  Call this before checking for messages, not after."""
        self.rung = False
        try:
            while len(os.read(self._read_fd, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close the doorbell.  The handler stays installed and does nothing."""
        _handler.doorbell = None
        with contextlib.suppress(ValueError):
            previous = signal.set_wakeup_fd(-1)
            if previous not in (self._write_fd, -1):
                signal.set_wakeup_fd(previous)
        os.close(self._read_fd)
        os.close(self._write_fd)
