# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Watching processes of other nodes: a descriptor for each watcher that is readable once the process has ended.

Rule 1.  ctdb announces no end of a process, so the process's node is asked: at once, and then once a second while
somebody watches.  A second has at most _CHECKS questions; with more processes than that, each waits its turn.
Rule 2.  A process counts as ended when its node says that its srvid is no longer registered there, or when the node is
no longer connected.  A node that hangs says nothing; ctdb takes a while to call that disconnected.
Rule 3.  A watcher has the reading end of a pipe, and the other end is here.  So a watcher that closes its descriptor is
noticed, and no longer asked for.
"""

from __future__ import annotations

import contextlib
import os
import time

from msgd.cluster.asking import srvid_of
from msgd.cluster.link import Link
from msgd.linux import new_poll
from msgd.wire.ctdb import Opcode, Reply, pack_pid_srvid
from msgd.wire.server_id import ServerID

_INTERVAL = 1.0
_CHECKS = 100


class _Watched:
    """A process that is watched: the writing ends of its watchers' pipes, and when it was last seen to live."""

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.asked = 0.0
        self.is_asked = False

    def drop_closed(self) -> None:
        """Forget the watchers that have closed their descriptors."""
        poll = new_poll()
        for end in self.ends:
            poll.register(end, 0)  # POLLERR comes without being asked for
        for end, _ in poll.poll(0):
            self.ends.remove(end)
            os.close(end)

    def tell(self) -> None:
        """Make the watchers' descriptors readable."""
        while self.ends:
            end = self.ends.pop()
            with contextlib.suppress(BrokenPipeError):
                os.write(end, b"\0")
            os.close(end)

    def close(self) -> None:
        """Close the ends here, which makes the watchers' descriptors readable, too, unless this is a forked child."""
        while self.ends:
            os.close(self.ends.pop())


class Watches:
    """The processes of other nodes that this one watches, over its link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._watched: dict[ServerID, _Watched] = {}
        self._is_timed = False

    def add(self, dst: ServerID) -> int:
        """A descriptor that is readable once the process has ended; the caller closes it.

        Raises NoSuchProcess if its node is not connected, TransportError, OSError.
        """
        self._link.check(dst)
        key = dst._replace(task_id=0)
        watched = self._watched.setdefault(key, _Watched())
        watched.drop_closed()
        watcher, end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        watched.ends.append(end)
        if time.monotonic() - watched.asked >= _INTERVAL:
            self._ask(key, watched)
        if not self._is_timed:
            self.start()
        return watcher

    def start(self) -> None:
        """Ask from now on: somebody watches, or the link is ready again."""
        for watched in self._watched.values():
            watched.is_asked = False
        self._is_timed = bool(self._watched)
        if self._is_timed:
            self._link.wake_in(_INTERVAL)

    def check(self) -> None:
        """Ask for those that were asked for the longest time ago, and forget those that nobody watches any more."""
        for key, watched in tuple(self._watched.items()):
            watched.drop_closed()
            if not watched.ends:
                del self._watched[key]
        due = sorted(self._watched.items(), key=lambda item: item[1].asked)
        for key, watched in due[:_CHECKS]:
            if not watched.is_asked:
                self._ask(key, watched)
        self._is_timed = bool(self._watched)
        if self._is_timed:
            self._link.wake_in(_INTERVAL)

    def _ask(self, key: ServerID, watched: _Watched) -> None:
        def note(reply: Reply) -> None:
            watched.is_asked = False
            if reply.error:
                self._link.nodes.ask_again()
            elif reply.status:
                self._end(key)

        watched.asked = time.monotonic()
        data = pack_pid_srvid(key.pid, srvid_of(key))
        watched.is_asked = self._link.ask_if_ready(Opcode.CHECK_PID_SRVID, note, data, key.vnn)

    def note_nodes(self) -> None:
        """A node map has come: the processes of a node that is not connected have ended."""
        for key in [one for one in self._watched if not self._link.nodes.is_connected(one.vnn)]:
            self._end(key)

    def _end(self, key: ServerID) -> None:
        watched = self._watched.pop(key, None)
        if watched is not None:
            watched.tell()

    def close(self) -> None:
        """Close every descriptor."""
        while self._watched:
            self._watched.popitem()[1].close()
