# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Workers: real processes that subscribe, note what they hear, and do what the test says."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from msgd import Config
from msgd.pubsub import Event, Gap, PubSub
from tests.support.harness import Channel, Child

P = ParamSpec("P")
T = TypeVar("T")

INTERVAL = 0.05
"""Seconds between two looks for what has not come, in the tests."""


class Notes:
    """What a worker has, and what it has heard: data in the order in which it came, and gaps among it."""

    def __init__(self, pubsub: PubSub) -> None:
        self.pubsub = pubsub
        self.heard: list[Any] = []
        self.others: dict[str, Any] = {}

    def note(self, event: Event) -> None:
        self.heard.append(event.data)

    def note_gap(self, gap: Gap) -> None:
        self.heard.append(gap)

    def gaps(self) -> list[Gap]:
        return [one for one in self.heard if isinstance(one, Gap)]


class Worker(Child):
    """A process with a PubSub that subscribes to `topics`; with a function, that is called with its notes first."""

    def __init__(self, config: Config, *topics: str, first: Callable[[Notes], object] | None = None) -> None:
        super().__init__(lambda channel: _serve(channel, config, topics, first))
        self.hear()

    def begin(self, function: Callable[Concatenate[Notes, P], T], /, *arguments: P.args, **named: P.kwargs) -> None:
        """Have the function run in the worker; its result is for hear()."""
        self.tell((function, arguments, named))

    def call(self, function: Callable[Concatenate[Notes, P], T], /, *arguments: P.args, **named: P.kwargs) -> T:
        """Run the function in the worker."""
        self.begin(function, *arguments, **named)
        result: T = self.hear()
        return result


def _serve(channel: Channel, config: Config, topics: tuple[str, ...], first: Callable[[Notes], object] | None) -> None:
    pubsub = PubSub(config, check_interval=INTERVAL)
    notes = Notes(pubsub)
    if first is not None:
        first(notes)
    for topic in topics:
        pubsub.subscribe(topic, notes.note)
    pubsub.on_gap(notes.note_gap)
    channel.send(os.getpid())
    while True:
        wait(notes, lambda: channel.poll(0), channel.fileno())
        try:
            function, arguments, named = channel.recv()
        except EOFError:
            pubsub.close()
            return
        channel.send(function(notes, *arguments, **named))


def wait(notes: Notes, is_there: Callable[[], object], fd: int = -1) -> None:
    """Wait until it is there, and dispatch meanwhile where no background thread does; `fd` is readable then."""
    pubsub = notes.pubsub
    has_thread = pubsub._open()._background is not None
    while not is_there():
        fds = [fd] if fd >= 0 else []
        if has_thread:
            select.select(fds, [], [], INTERVAL)
        else:
            select.select([*fds, pubsub.fileno()], [], [], INTERVAL)
            pubsub.dispatch(0)


# What workers do


def heard(notes: Notes, last: Any) -> list[Any]:
    """What has been heard up to this, which may be a kind of thing."""
    wait(notes, lambda: any(one == last or (isinstance(last, type) and isinstance(one, last)) for one in notes.heard))
    return list(notes.heard)


def so_far(notes: Notes) -> list[Any]:
    """What has been heard."""
    return list(notes.heard)


def publish(notes: Notes, topic: str, data: Any, *, include_self: bool = True) -> tuple[int, list[int]]:
    """Publish; how many took it, and the pids of those that did not."""
    publication = notes.pubsub.publish(topic, data, include_self=include_self)
    return publication.delivered, list(publication.failures)


def publish_acked(notes: Notes, topic: str, data: Any) -> tuple[int, list[int]]:
    """The same, with acknowledgements."""
    publication = notes.pubsub.publish(topic, data, wait="acked")
    return publication.delivered, list(publication.failures)


def settle(notes: Notes) -> list[Any]:
    """Wait until everything published has been handled, or told as a gap; what has been heard."""
    wait(notes, notes.pubsub.is_current)
    return list(notes.heard)


def pidfds() -> list[str]:
    """The descriptors of this process by which it watches others."""
    opened = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sorted(fd for fd in opened if os.path.lexists(fd) and os.readlink(fd) == "anon_inode:[pidfd]")
