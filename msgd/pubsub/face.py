# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What the synchronous PubSub and that of asyncio have in common: opening the hub, forking, and telling gaps.

Rule 1.  A PubSub only reads until it is first used: subscribe(), publish() or start() opens it, and opens it again in a
    forked child.  So it may be made while a module is imported, before a server forks or changes its user.
Rule 2.  At its construction it notes how much has been published.  If that has changed when the hub is opened, what
    the program has read in between may be stale, and that is a gap.  A forked child compares with what its parent had
    handled, which is what its memory reflects.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Protocol

from msgd.config import Config
from msgd.errors import ContextClosed, MsgdError
from msgd.events import MISSED, fields
from msgd.pubsub import process
from msgd.pubsub.events import Gap, GapReason, OnGap
from msgd.pubsub.hub import Hub
from msgd.pubsub.place import place
from msgd.pubsub.progress import State
from msgd.pubsub.subscriptions import Sink
from msgd.pubsub.table import NOTHING, Table

logger = logging.getLogger("msgd")

CHECK_INTERVAL = 1.0
"""Seconds between two looks for what has been published and has not come."""


class GapSink(Sink, Protocol):
    """A subscription that may want to know of gaps."""

    def miss(self, gap: Gap) -> bool:
        """Something may have been missed; returns whether there is anybody to tell."""


class BaseFace:
    """The part of a PubSub that does not wait for anything."""

    def __init__(self, directory: str | os.PathLike[str] | Config | None, name: str | None) -> None:
        self._directory = directory
        self._name = name
        self._hub: Hub | None = None
        self._sinks: tuple[GapSink, ...] = ()
        self._on_gap: tuple[OnGap, ...] = ()
        self._is_closed = False
        self._since = time.monotonic()
        """What was published after this may not be known to the program, on the monotonic clock."""
        self._mark = self._note()

    def _note(self) -> State | None:
        """How much has been published now; None if nobody can say, which counts as a gap later."""
        try:
            directory = place(self._directory, self._name).lock_directory
            if not os.path.isdir(directory):
                return None, NOTHING
            table = Table(directory, create=False)
        except FileNotFoundError:
            return None, NOTHING
        except MsgdError as error:
            logger.info("not looking at what has been published: %s", error)  # opening it will raise
            return None
        try:
            return table.id, table.snapshot()
        finally:
            table.close()

    def _open(self) -> Hub:
        """The hub, opened where it is not.  Raises what Hub raises."""
        hub = self._hub
        if hub is not None:
            return hub
        with process.lock:
            if self._hub is None:
                self._join()
            assert self._hub is not None
            return self._hub

    def _join(self) -> None:
        if self._is_closed:
            raise ContextClosed("this PubSub has been closed")
        hub = process.join(place(self._directory, self._name), self)
        hub.since = min(hub.since, self._since)
        try:
            for sink in self._sinks:
                hub.attach(sink)
            self._hub = hub
            if self._sinks:
                self.tell_what_was_before()
            self._begin(hub)
        except BaseException:
            self._hub = None
            self._withdraw(hub, 0)
            raise

    def tell_what_was_before(self) -> None:
        """Tell a gap if anything was published since this object was made, or since the fork (Rule 2).

        For those who subscribe after opening: call it once, when all have subscribed.
        """
        mark, self._mark, hub = self._mark, None, self._open()
        was_heard = hub.others is not None and hub.others.last_heard > self._since
        if was_heard or _is_stale(mark, hub.progress.state()):
            self.miss(Gap(GapReason.BEFORE))

    def _begin(self, hub: Hub) -> None:
        """Have the hub dispatched."""
        raise NotImplementedError

    def _withdraw(self, hub: Hub, timeout: float | None) -> int:
        try:
            return process.leave(hub, self, timeout)
        finally:
            for sink in self._sinks:
                hub.detach(sink)

    def _add(self, sink: GapSink) -> None:
        """Begin a subscription.  Raises what opening the hub raises; then there is none."""
        with process.lock:
            before, self._sinks = self._sinks, (*self._sinks, sink)
            try:
                if self._hub is None:
                    self._open()
                else:
                    self._hub.attach(sink)
            except BaseException:
                self._sinks = before
                raise

    def _remove(self, sink: GapSink) -> None:
        with process.lock:
            self._sinks = tuple(one for one in self._sinks if one is not sink)
            if self._hub is not None:
                self._hub.detach(sink)

    def _close(self, timeout: float | None) -> int:
        with process.lock:
            self._is_closed = True
            hub, self._hub = self._hub, None
        return 0 if hub is None else self._withdraw(hub, timeout)

    # What the hub calls

    def miss(self, gap: Gap) -> None:
        """Something may have been missed: tell all who want to know, or else the log."""
        is_heard = bool(self._on_gap)
        for callback in self._on_gap:
            call_on_gap(callback, gap)
        for sink in self._sinks:
            is_heard |= sink.miss(gap)
        if self._sinks and not is_heard:
            warn(gap)

    def leave_parent(self, state: State) -> None:
        """This process has been forked: what its memory reflects is what the parent had handled."""
        self._hub, self._mark, self._since = None, state, time.monotonic()

    def reopen(self) -> None:
        """In a forked child: open a hub of its own."""
        if not self._is_closed:
            self._open()

    def note_closed(self) -> None:
        """The hub has been closed at exit."""
        self._hub = None


def warn(gap: Gap) -> None:
    """Something may have been missed, and the program has said nobody who wants to know."""
    logger.warning("publications may have been missed, and there is no on_gap: %s", gap, extra=fields(MISSED))


def call_on_gap(callback: OnGap, gap: Gap) -> None:
    """Tell one who wants to know; what it raises is logged."""
    try:
        callback(gap)
    except Exception:
        logger.exception("on_gap: %s", gap, extra=fields(MISSED))


def _is_stale(mark: State | None, state: State) -> bool:
    if mark is None:
        return True
    return mark[1] != state[1] or (mark[0] is not None and mark[0] != state[0])
