# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The child processes of the main process: starting, counting, reaping them.

Rule 1.  A child is forked with all signals blocked and closes what belongs to its parent, so a signal to the child
never gets into the parent's wake-up pipe.

Rule 2.  The child unblocks signals once it has handlers for them.  A signal that the parent sends to all children
before that stays pending and does not kill the child.

Rule 3.  A child ends with _exit(), which skips the parent's `with` blocks and exit handlers.

Rule 4.  A child outlives the main process.  The next main process adopts it.  An adopted process cannot be waited for,
so a pidfd reports its end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

logger = logging.getLogger("msgd.daemon")

LetIn = Callable[[], None]
"""What a child calls to unblock signals."""


_OOM_SCORE = 500
"""In thousandths of the machine's memory: how much larger a child looks to the kernel's OOM killer."""


class Ended(NamedTuple):
    """A child that has ended: `status` is its exit status, negative for a signal."""

    pid: int
    uid: int
    status: int


class Adopted(NamedTuple):
    """A child of an earlier main process: the pidfd that reports its end, and the uid it serves."""

    pidfd: int
    uid: int


class Children:
    """The running children, each with the uid it serves.

    In a child `let_go` closes what belongs to the parent.  `changed` is called when the number of children changes.
    """

    def __init__(self, let_go: Callable[[], None], changed: Callable[[], None]) -> None:
        self._let_go = let_go
        self._changed = changed
        self._uids: dict[int, int] = {}
        self._adopted: dict[int, Adopted] = {}
        self._per_uid: Counter[int] = Counter()
        self._starting: set[int] = set()
        self.on_running: Callable[[int], None] = _do_nothing
        """Called with the pid of a child that says that it has started."""

    def __len__(self) -> int:
        return len(self._uids) + len(self._adopted)

    def numbers(self) -> Mapping[int, int]:
        """The number of children that serve each user."""
        return self._per_uid

    def starting_of(self, uid: int) -> int:
        """The number of children of this user that have been started and have neither said they run nor ended."""
        return sum(self._uids[pid] == uid for pid in self._starting)

    def pids_of(self, uid: int) -> list[int]:
        """The children of this user that this process has forked: their pids are theirs until they are reaped."""
        return [pid for pid, one in self._uids.items() if one == uid]

    def adopted_pids_of(self, uid: int) -> list[int]:
        """The adopted children of this user.  Such a pid may be another process's by now."""
        return [pid for pid, adopted in self._adopted.items() if adopted.uid == uid]

    def note_running(self, pid: int) -> None:
        """A child says that it has started.  What is not a child's pid is ignored."""
        if pid in self._starting:
            self._starting.discard(pid)
            self.on_running(pid)

    def forked_pids(self) -> list[int]:
        """The children that this process has forked: their pids are theirs until they are reaped."""
        return list(self._uids)

    def is_starting(self, pid: int) -> bool:
        """Whether this child has not said that it runs."""
        return pid in self._starting

    def start(self, uid: int, body: Callable[[LetIn], int]) -> int:
        """Fork a child that runs `body` and exits with the status it returns.  Returns its pid.

        Signals are blocked until `body` calls its argument.  If `body` raises, the child logs it and exits with 1.
        OSError if fork() fails.
        """
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _run(self._let_go, blocked, body)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._uids[pid] = uid
        self._starting.add(pid)
        self._per_uid[uid] += 1
        self._changed()
        return pid

    def adopt(self, pid: int, pidfd: int, uid: int) -> None:
        """Count a process that an earlier main process forked.  release() closes `pidfd`."""
        self._adopted[pid] = Adopted(pidfd, uid)
        self._per_uid[uid] += 1
        self._changed()

    def release(self, pid: int) -> int:
        """An adopted process has ended; the uid it served."""
        pidfd, uid = self._adopted.pop(pid)
        os.close(pidfd)
        self._uncount(uid)
        return uid

    def ended_adopted(self) -> list[tuple[int, int]]:
        """The pids of adopted processes that have ended, and their pidfds."""
        poll = select.poll()
        for pidfd, _ in self._adopted.values():
            poll.register(pidfd, select.POLLIN)
        ended = {pidfd for pidfd, _ in poll.poll(0)}
        return [(pid, pidfd) for pid, (pidfd, _) in self._adopted.items() if pidfd in ended]

    def reap(self) -> Iterator[Ended]:
        """Reap the children that have ended."""
        for pid in list(self._uids):
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped:
                uid = self._uids.pop(pid)
                self._starting.discard(pid)
                self._uncount(uid)
                yield Ended(pid, uid, os.waitstatus_to_exitcode(status))

    def _uncount(self, uid: int) -> None:
        self._per_uid -= Counter((uid,))
        self._changed()

    def signal_all(self, signum: signal.Signals) -> None:
        """Send a signal to all children."""
        for pid in self._uids:
            os.kill(pid, signum)  # not reaped yet, so the pid is still its own
        for pidfd, _ in self._adopted.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signum)

    def kill(self, pid: int) -> None:
        """End a child that this process has forked at once, if it has not ended."""
        if pid in self._uids:
            os.kill(pid, signal.SIGKILL)

    def abandon(self) -> None:
        """In a forked child: forget the parent's children."""
        for pidfd, _ in self._adopted.values():
            os.close(pidfd)
        self._adopted.clear()
        self._uids.clear()
        self._starting.clear()
        self._per_uid.clear()


def _run(let_go: Callable[[], None], blocked: Iterable[int], body: Callable[[LetIn], int]) -> None:
    """In the child: run `body` and exit.  `blocked` are the signals that stay blocked to the end."""
    status = 1
    try:
        _die_before_the_main_process()
        let_go()
        status = body(lambda: _unblock_all_but(blocked))
    except BaseException:  # the child ends here; there is no caller to raise to
        logger.exception("process %d fails", os.getpid())
    finally:
        os._exit(status)


def _die_before_the_main_process() -> None:
    """If memory runs out, the kernel should kill one of the many children first."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:
        if int(file.read()) < _OOM_SCORE:
            file.seek(0)
            file.write(str(_OOM_SCORE))


def _do_nothing(pid: int) -> None:
    """Nobody wants to know when a child has started."""


def _unblock_all_but(blocked: Iterable[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
