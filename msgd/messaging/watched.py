# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The ends of many processes that are asked together, or again and again: their pidfds, in one epoll set.

Rule 1.  To open a pidfd and to check whose it is takes six system calls, more than to ask the process.  So whoever asks
    the same processes again keeps the set, and calls keep_only() with those that it asks next.
Rule 2.  An end is reported once (EPOLLONESHOT), until watch_again() asks for it once more.
Rule 3.  A pidfd is taken out of the epoll set before it is closed: a forked child may hold a copy, and the set would
    report the end under a number that belongs to another process by then.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Collection, Iterator
from typing import Self

from msgd.errors import TransportError
from msgd.wire.server_id import ServerID

_KEPT_MAX = 256
"""Descriptors that are kept for the next question."""

_EVENTS = select.EPOLLIN | select.EPOLLONESHOT


class Watched:
    """A set of watched processes; a context manager, which closes it.  One thread at a time uses it."""

    def __init__(self) -> None:
        try:
            self._epoll = select.epoll()
        except OSError as error:
            raise TransportError(f"watching processes: {error.strerror}") from error
        self._pidfds: dict[ServerID, int] = {}
        self._ended: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._pidfds)

    def fileno(self) -> int:
        """A descriptor that is readable when ended() has something to tell."""
        return self._epoll.fileno()

    def pidfd(self, dst: ServerID, watch: Callable[[ServerID], int]) -> int:
        """The pidfd of a process, from `watch` where it is not in the set.  Raises what that does, TransportError."""
        pidfd = self._pidfds.get(dst)
        if pidfd is not None and pidfd not in self._ended:
            return pidfd
        self._drop(dst)
        pidfd = watch(dst)
        try:
            self._epoll.register(pidfd, _EVENTS)
        except OSError as error:
            os.close(pidfd)
            raise TransportError(f"watching {dst}: {error.strerror}") from error
        self._pidfds[dst] = pidfd
        return pidfd

    def ended(self) -> list[int]:
        """The pidfds of the processes that have ended since the last call."""
        found = [pidfd for pidfd, _ in self._epoll.poll(0, max(1, len(self._pidfds)))]
        self._ended.update(found)
        return found

    def watch_again(self, pidfds: Collection[int]) -> None:
        """Have ended() name these once more."""
        for pidfd in pidfds:
            self._epoll.modify(pidfd, _EVENTS)

    def keep_only(self, wanted: Collection[ServerID]) -> None:
        """Let go of all but these, and of those that have ended."""
        wanted = frozenset(wanted)
        for dst, pidfd in tuple(self._pidfds.items()):
            if dst not in wanted or pidfd in self._ended:
                self._drop(dst)

    def _drop(self, dst: ServerID) -> None:
        pidfd = self._pidfds.pop(dst, None)
        if pidfd is not None:
            self._ended.discard(pidfd)
            self._epoll.unregister(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        """Close all descriptors; in a forked child, too, where nothing changes for the parent."""
        self._epoll.close()
        while self._pidfds:
            os.close(self._pidfds.popitem()[1])


class Kept:
    """The set of the last question, for whoever asks next; two who ask at the same time have one each.

    It has no lock, which a forked child might find taken: pop() and append() of a list are one step each.
    """

    def __init__(self) -> None:
        self._spare: list[Watched] = []
        self._is_closed = False

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Watched]:
        """The set, for one question.  Raises TransportError."""
        try:
            watched = self._spare.pop()
        except IndexError:
            watched = Watched()
        try:
            yield watched
        finally:
            if self._spare or len(watched) > _KEPT_MAX:
                watched.close()
            else:
                self._spare.append(watched)
                if self._is_closed:
                    self.close()

    def close(self) -> None:
        """Close what is kept, and keep nothing more; in a forked child, too."""
        self._is_closed = True
        while self._spare:
            with contextlib.suppress(IndexError):  # another thread has been faster
                self._spare.pop().close()
