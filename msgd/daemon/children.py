"""The processes that the main process has forked: started, counted, reaped.

A child is forked with every signal blocked and lets go of what is its parent's: a signal to the child never ends up in
the parent's wake-up pipe.  Its body lets signals in once it has its own handlers for them: one that the parent sends
to all meanwhile waits until then, and does not kill it.  It leaves by _exit(), past the parent's `with` blocks and exit
handlers.

A child outlives the main process.  Those of an earlier main process that are found running are adopted: they cannot
be waited for, so a pidfd tells of their end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

logger = logging.getLogger("msgd.daemon")

LetIn = Callable[[], None]
"""What a child calls once it is ready for signals."""


_OOM_SCORE = 500
"""In thousandths of the machine's memory: as if a child had so much more."""


class Ended(NamedTuple):
    """A child that has ended: `status` is its exit status, negative for a signal."""

    pid: int
    uid: int
    status: int


class Adopted(NamedTuple):
    """A child of an earlier main process: what tells of its end, and the uid it serves."""

    pidfd: int
    uid: int


class Children:
    """The running children, each with the uid it serves.

    `let_go` closes, in a child, what is the parent's; `changed` is called when there are more or fewer of them.
    """

    def __init__(self, let_go: Callable[[], None], changed: Callable[[], None]) -> None:
        self._let_go = let_go
        self._changed = changed
        self._uids: dict[int, int] = {}
        self._adopted: dict[int, Adopted] = {}
        self._per_uid: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._uids) + len(self._adopted)

    def number_of(self, uid: int) -> int:
        """The children that serve this user."""
        return self._per_uid[uid]

    def start(self, uid: int, body: Callable[[LetIn], int]) -> int:
        """Fork a child that runs `body` and exits with the status it returns; its pid.

        Signals are blocked until `body` calls its argument.  What it raises is logged there, and the status is 1.
        OSError if there can be no child.
        """
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _run(self._let_go, blocked, body)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._uids[pid] = uid
        self._per_uid[uid] += 1
        self._changed()
        return pid

    def adopt(self, pid: int, pidfd: int, uid: int) -> None:
        """Count a process that an earlier main process has forked.  `pidfd` is closed by release()."""
        self._adopted[pid] = Adopted(pidfd, uid)
        self._per_uid[uid] += 1
        self._changed()

    def release(self, pid: int) -> int:
        """An adopted process has ended; the uid it served."""
        pidfd, uid = self._adopted.pop(pid)
        os.close(pidfd)
        self._one_less(uid)
        return uid

    def ended_adopted(self) -> list[tuple[int, int]]:
        """The pids of adopted processes that have ended, and their pidfds."""
        poll = select.poll()
        for pidfd, _ in self._adopted.values():
            poll.register(pidfd, select.POLLIN)
        ended = {pidfd for pidfd, _ in poll.poll(0)}
        return [(pid, pidfd) for pid, (pidfd, _) in self._adopted.items() if pidfd in ended]

    def reap(self) -> Iterator[Ended]:
        """Take note of the children that have ended."""
        for pid in list(self._uids):
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped:
                uid = self._uids.pop(pid)
                self._one_less(uid)
                yield Ended(pid, uid, os.waitstatus_to_exitcode(status))

    def _one_less(self, uid: int) -> None:
        self._per_uid -= Counter((uid,))
        self._changed()

    def signal_all(self, signum: signal.Signals) -> None:
        """Send all of them a signal."""
        for pid in self._uids:
            os.kill(pid, signum)  # not reaped yet, so the pid is still its own
        for pidfd, _ in self._adopted.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signum)

    def abandon(self) -> None:
        """In a forked child: they are the parent's."""
        for pidfd, _ in self._adopted.values():
            os.close(pidfd)
        self._adopted.clear()
        self._uids.clear()
        self._per_uid.clear()


def _run(let_go: Callable[[], None], blocked: Iterable[int], body: Callable[[LetIn], int]) -> None:
    """In the child: run `body`, and never return.  `blocked`: the signals that stay blocked when it lets them in."""
    status = 1
    try:
        _die_before_the_main_process()
        let_go()
        status = body(lambda: _let_in_all_but(blocked))
    except BaseException:  # the child's end, whatever it was; nobody is left to raise it to
        logger.exception("process %d fails", os.getpid())
    finally:
        os._exit(status)


def _die_before_the_main_process() -> None:
    """Where memory runs out, the kernel is to kill a child, of which there are many."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:
        if int(file.read()) < _OOM_SCORE:
            file.seek(0)
            file.write(str(_OOM_SCORE))


def _let_in_all_but(blocked: Iterable[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
