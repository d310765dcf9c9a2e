# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Scrapes: who asks for the metrics is answered by a process of its own.

Rule 1.  The main process never reads a request.  It forks a process with a copy of all the numbers, which answers at
the pace of the scraper.

Rule 2.  A scraper has REQUEST_LIMIT seconds to send its request, and ANSWER_LIMIT from then on to read the answer.

Rule 3.  MOST scrapes run at once.  One more ends the oldest that has not sent its request: connections that say
nothing keep nobody out.  If all have sent theirs, the new one is closed.

Rule 4.  A scraper that has gone before its turn costs no process.  So connections that are opened and closed in a loop
do not let others wait behind them.
"""

from __future__ import annotations

import logging
import mmap
import select
import signal
import socket
from collections.abc import Callable

from msgd.daemon.children import Children, LetIn
from msgd.daemon.listener import Listener
from msgd.daemon.loop import NEVER, Loop
from msgd.drops import Pace
from msgd.errors import MsgdError
from msgd.events import and_others

logger = logging.getLogger("msgd.daemon")

MOST = 8
REQUEST_LIMIT = 5
ANSWER_LIMIT = 10

_ACCEPTED_AT_ONCE = 64
"""Scrapers that have gone which are closed in one turn of the loop."""

_BACK_OFF = 1.0
"""Seconds of backing off after the system had no descriptor or no process left for a scrape."""

Answer = Callable[[socket.socket, Callable[[], None]], None]
"""What answers a scrape in its process: it is given the connection, and a function to call when it has the request."""


class Scrapes:
    """Has each scrape at `listener` answered.

    `prepare` is called in the main process and returns what answers in the other one, where `let_go` closes what
    belongs to the main process.
    """

    def __init__(
        self, loop: Loop, listener: Listener, let_go: Callable[[], None], prepare: Callable[[], Answer]
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._prepare = prepare
        self._children = Children(let_go, lambda: None)
        self._has_asked: dict[int, mmap.mmap] = {}
        """For each process, the oldest first: memory shared with it, which says whether it has the request."""
        self._pace = Pace()
        self._resume_timer = loop.call_later(NEVER, self._listen)
        self._listen()

    def reap(self) -> None:
        """Reap the processes that have ended."""
        for pid, _, status in self._children.reap():
            is_known = self._has_asked.pop(pid, None) is not None
            if status == -signal.SIGALRM:
                self._log("a scrape took too long: its process has been ended")
            elif status and is_known:  # one that is not known any more was evicted
                self._log(f"the process {pid} that answered a scrape ended with status {status}")

    def close(self) -> None:
        """Accept no more."""
        self._resume_timer.cancel()
        self._loop.on_readable(self._listener.fileno(), None)
        self._listener.close()

    def abandon(self) -> None:
        """In a forked child: close the copies."""
        self._listener.abandon()

    def _listen(self) -> None:
        self._loop.on_readable(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            for _ in range(_ACCEPTED_AT_ONCE):
                client = self._listener.accept()
                if client is None or not _has_gone(client):
                    break
                client.close()
            else:
                return
        except OSError as error:
            self._back_off(f"no scrape can be answered: {error.strerror}")
            return
        if client is not None:
            with client:
                if len(self._has_asked) < MOST or self._evict():
                    self._start(client)

    def _evict(self) -> bool:
        """End the oldest scrape without a request; False if there is none."""
        for pid, has_asked in self._has_asked.items():
            if not has_asked[0]:
                del self._has_asked[pid]
                self._children.kill(pid)
                self._log("a scrape that has not asked for anything makes room for another")
                return True
        return False

    def _start(self, client: socket.socket) -> None:
        try:
            answer = self._prepare()
            has_asked = mmap.mmap(-1, 1)
            pid = self._children.start(0, lambda let_in: _answer(client, answer, has_asked, let_in))
        except (MsgdError, OSError, MemoryError) as error:
            self._back_off(f"no process to answer a scrape: {error}")
        else:
            self._has_asked[pid] = has_asked

    def _back_off(self, why: str) -> None:
        logger.error("%s; scrapes wait for %g seconds", why, _BACK_OFF)
        self._loop.on_readable(self._listener.fileno(), None)
        self._resume_timer.restart(_BACK_OFF)

    def _log(self, text: str) -> None:
        if number := self._pace.due(text):
            logger.warning("%s%s", text, and_others(number))


def _has_gone(client: socket.socket) -> bool:
    """Whether nobody reads an answer there, or no request will come."""
    poll = select.poll()
    poll.register(client, select.POLLIN)
    events = sum(event for _, event in poll.poll(0))
    try:
        is_ended = bool(events) and not client.recv(1, socket.MSG_PEEK)
    except OSError:
        return True
    return is_ended or bool(events & (select.POLLHUP | select.POLLERR))


def _answer(client: socket.socket, answer: Answer, has_asked: mmap.mmap, let_signals_in: LetIn) -> int:
    """In a process of its own: answer one request."""

    def note_request() -> None:
        has_asked[0] = 1
        signal.alarm(ANSWER_LIMIT)

    let_signals_in()  # SIGALRM ends the process
    signal.alarm(REQUEST_LIMIT)
    answer(client, note_request)
    return 0
