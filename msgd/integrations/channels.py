# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A layer for Django Channels, so that the WebSockets of several workers talk without Redis.

    CHANNEL_LAYERS = {"default": {"BACKEND": "msgd.integrations.channels.MsgdChannelLayer", "CONFIG": {"name": "shop"}}}

Rule 1.  A message waits in the process that receives it, up to the capacity of its channel and its expiry.  The name
    of a channel that new_channel() has made says which process that is.
Rule 2.  Another name (`thumbnails`, a plain one, as runworker has it) belongs to all processes that receive from it,
    which have added a name to the directory.  A message goes to one of them, in turn.  While there is none, it waits
    in the process that has sent it, and is handed over when one says that it serves the channel.  Whoever has put a
    message there looks once more afterwards, so that neither misses the other.
Rule 3.  The members of a group are known where their channels are.  A message for a group goes to every process.
Rule 4.  One lock guards all, and is held for moments.  A message leaves its queue in the coroutine that receives it,
    so one that is cancelled loses none; what it was woken up for, the next one gets.  The loops of several threads may
    use one layer, and so may async_to_sync().
Rule 5.  As with Redis, a message arrives at most once: one for a channel of another process that is full there is
    dropped and logged, while send() to a channel of this process raises ChannelFull.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import threading
import time
import weakref
from collections import deque
from typing import Any, NamedTuple

import msgpack
from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer

from msgd.config import Config
from msgd.pubsub import Event, PubSub
from msgd.wire.server_id import ServerID

logger = logging.getLogger("msgd")

_PREFIX = "django.channels/"
_TO_ALL = _PREFIX + "all"
_SERVES = "channel "
"""In front of a plain channel: the name that the processes have added that receive from it."""


class _Waiter(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]


class _Channel:
    """The messages that wait in one channel, and the coroutines that wait for some."""

    def __init__(self) -> None:
        self.messages: deque[tuple[float, dict[str, Any]]] = deque()
        """When each expires, and what it says."""
        self.waiters: deque[_Waiter] = deque()

    def wake_one(self) -> None:
        """Wake up a coroutine, if there is something for it."""
        while self.messages and self.waiters:
            waiter = self.waiters.popleft()
            with contextlib.suppress(RuntimeError):  # its loop has been closed
                waiter.loop.call_soon_threadsafe(_settle, waiter.future)
                return


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class MsgdChannelLayer(BaseChannelLayer):  # type: ignore[misc]  # channels has no types
    """The layer.  `directory`, `name`: where the processes meet, as msgd.pubsub.PubSub has it.

    `expiry`: seconds that a message waits.  `group_expiry`: seconds that a channel stays in a group.  `capacity`:
    messages that wait in a channel, and `channel_capacity` those of channels whose names match.  It opens the
    directory, and raises then what PubSub raises.
    """

    extensions = ("groups", "flush")

    def __init__(
        self,
        directory: str | os.PathLike[str] | Config | None = None,
        name: str | None = None,
        *,
        expiry: float = 60,
        group_expiry: float = 86400,
        capacity: int = 100,
        channel_capacity: dict[Any, int] | None = None,
    ) -> None:
        super().__init__(expiry=expiry, capacity=capacity)
        self.channel_capacity = self.compile_capacities(channel_capacity or {})
        self.group_expiry = group_expiry
        self._begin()
        _layers.add(self)
        self._pubsub = PubSub(directory, name=name)
        self._pubsub.subscribe(f"{_PREFIX}*", self._on_event, on_gap=_note_gap)

    def _begin(self) -> None:
        """Have nothing; in a forked child, too, to which no channel of its parent belongs."""
        self._lock = threading.Lock()
        self._owner = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._channels: dict[str, _Channel] = {}
        self._groups: dict[str, dict[str, float]] = {}
        self._served: set[str] = set()
        self._turns = itertools.count()
        self._next_sweep = 0.0

    def _open(self) -> PubSub:
        return self._pubsub.start()

    # Channels

    async def new_channel(self, prefix: str = "specific") -> str:
        """A name that no other channel has, of this process."""
        self._open()
        return f"{prefix}.{self._owner}!{secrets.token_hex(8)}"

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send to one channel.  Raises ChannelFull if the message waits in this process, and there is no room."""
        _check(message)
        self.require_valid_channel_name(channel)
        pubsub, owner = self._open(), self._owner_of(channel)
        if owner:
            pubsub.publish(_PREFIX + owner, _pack("send", channel, message), include_self=False)
        elif not self._send_here(channel, message):
            raise ChannelFull

    def _send_here(self, channel: str, message: dict[str, Any]) -> bool:
        """Send to a channel of this process, or to a plain one.  Returns whether there was room."""
        if "!" in channel:
            return self._put(channel, message)
        server = self._server_of(channel)
        if server:
            self._pubsub.publish(_PREFIX + server, _pack("send", channel, message), include_self=False)
            return True
        has_room = self._put(channel, message)
        if channel not in self._served and (server := self._server_of(channel)):
            self._hand_over(channel, server)
        return has_room

    def _server_of(self, channel: str) -> str:
        """A process whose turn it is among those that receive from a plain channel; "" for this one, or for none."""
        messaging = self._pubsub._open().messaging
        servers = messaging.lookup(_SERVES + channel)
        server = servers[next(self._turns) % len(servers)] if servers else messaging.server_id
        return "" if server.pid == os.getpid() else _address(server)

    def _serve(self, channel: str) -> None:
        """Say that this process receives from a plain channel, and ask for what waits elsewhere."""
        if "!" in channel or channel in self._served:
            return
        self._served.add(channel)
        messaging = self._pubsub._open().messaging
        messaging.add_name(_SERVES + channel)
        self._pubsub.publish(_TO_ALL, _pack("serves", channel, _address(messaging.server_id)), include_self=False)

    def _hand_over(self, channel: str, server: str) -> None:
        """Another process receives from a plain channel: send it what waits here."""
        with self._lock:
            queue = self._channels.get(channel)
            if queue is None or channel in self._served:
                return
            self._expire(channel)
            messages = [message for _, message in queue.messages]
            queue.messages.clear()
            self._drop_if_unused(channel, queue)
        for message in messages:
            self._pubsub.publish(_PREFIX + server, _pack("send", channel, message), include_self=False)

    def _owner_of(self, channel: str) -> str:
        """The process that a channel belongs to; "" if it is this one."""
        owner = channel.partition("!")[0].rpartition(".")[2] if "!" in channel else ""
        return "" if owner == self._owner else owner

    def _put(self, channel: str, message: dict[str, Any]) -> bool:
        """Have a message wait here.  Returns whether there was room."""
        with self._lock:
            self._expire(channel)
            queue = self._channels.setdefault(channel, _Channel())
            if len(queue.messages) >= self.get_capacity(channel):
                return False
            queue.messages.append((time.monotonic() + self.expiry, _copy(message)))
            queue.wake_one()
            return True

    async def receive(self, channel: str) -> dict[str, Any]:
        """The next message of a channel of this process, or of a plain one; waits for one."""
        self.require_valid_channel_name(channel)
        self._open()
        self._serve(channel)
        while True:
            with self._lock:
                self._expire(channel)
                queue = self._channels.setdefault(channel, _Channel())
                if queue.messages:
                    _, message = queue.messages.popleft()
                    self._drop_if_unused(channel, queue)
                    return message
                loop = asyncio.get_running_loop()
                waiter = _Waiter(loop, loop.create_future())
                queue.waiters.append(waiter)
            try:
                await waiter.future
            except BaseException:
                self._give_up(channel, queue, waiter)
                raise

    def _give_up(self, channel: str, queue: _Channel, waiter: _Waiter) -> None:
        with self._lock:
            if waiter in queue.waiters:
                queue.waiters.remove(waiter)
            queue.wake_one()
            self._drop_if_unused(channel, queue)

    def _drop_if_unused(self, channel: str, queue: _Channel) -> None:
        if not queue.messages and not queue.waiters and self._channels.get(channel) is queue:
            del self._channels[channel]

    def _expire(self, channel: str) -> None:
        """Forget messages of a channel that have waited too long, and now and then those of all."""
        now = time.monotonic()
        names = [channel]
        if now >= self._next_sweep:
            self._next_sweep = now + self.expiry / 10
            names = list(self._channels)
        for name in names:
            queue = self._channels.get(name)
            if queue is not None and queue.messages and queue.messages[0][0] <= now:
                self._forget_old(name, queue, now)

    def _forget_old(self, name: str, queue: _Channel, now: float) -> None:
        """Nobody has received in this channel for too long, so it leaves its groups, too."""
        while queue.messages and queue.messages[0][0] <= now:
            queue.messages.popleft()
        for members in self._groups.values():
            members.pop(name, None)
        self._drop_if_unused(name, queue)

    # Groups

    async def group_add(self, group: str, channel: str) -> None:
        """Have a channel, of whatever process, get what is sent to a group."""
        self._change(group, channel, "add")

    async def group_discard(self, group: str, channel: str) -> None:
        """The opposite."""
        self._change(group, channel, "discard")

    def _change(self, group: str, channel: str, what: str) -> None:
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        pubsub, owner = self._open(), self._owner_of(channel)
        if owner:
            pubsub.publish(_PREFIX + owner, _pack(what, group, channel), include_self=False)
        else:
            self._change_here(group, channel, what)

    def _change_here(self, group: str, channel: str, what: str) -> None:
        with self._lock:
            members = self._groups.setdefault(group, {})
            members.pop(channel, None)
            if what == "add":
                members[channel] = time.monotonic() + self.group_expiry
            if not members:
                del self._groups[group]

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send to all channels of a group.  Those that are full do not get it."""
        _check(message)
        self.require_valid_group_name(group)
        self._open().publish(_TO_ALL, _pack("group", group, message), include_self=False)
        self._group_send_here(group, message)

    def _group_send_here(self, group: str, message: dict[str, Any]) -> None:
        now = time.monotonic()
        with self._lock:
            members = self._groups.get(group, {})
            for channel in [channel for channel, until in members.items() if until <= now]:
                del members[channel]
            channels = tuple(members)
        for channel in channels:
            if not self._send_here(channel, message):
                logger.info("the channel %s is full: it misses a message for the group %s", channel, group)

    async def flush(self) -> None:
        """Forget all messages and groups, in all processes."""
        self._open().publish(_TO_ALL, _pack("flush"), include_self=False)
        self._flush_here()

    def _flush_here(self) -> None:
        with self._lock:
            for name, queue in tuple(self._channels.items()):
                queue.messages.clear()
                self._drop_if_unused(name, queue)
            self._groups.clear()

    # What comes from other processes

    def _on_event(self, event: Event) -> None:
        address = _address(self._pubsub._open().messaging.server_id)
        if event.topic not in (_TO_ALL, _PREFIX + self._owner, _PREFIX + address):
            return
        match msgpack.unpackb(event.data, strict_map_key=False):
            case ["send", str(channel), dict(message)]:
                if not self._put(channel, message):
                    logger.warning("the channel %s is full: a message for it is dropped", channel)
            case ["group", str(group), dict(message)]:
                self._group_send_here(group, message)
            case [("add" | "discard") as what, str(group), str(channel)]:
                self._change_here(group, channel, what)
            case ["serves", str(channel), str(server)]:
                self._hand_over(channel, server)
            case ["flush"]:
                self._flush_here()

    async def close(self) -> None:
        """Leave the directory.  The layer is not used again."""
        self._pubsub.close()


_layers: weakref.WeakSet[MsgdChannelLayer] = weakref.WeakSet()


def _after_fork() -> None:
    for layer in tuple(_layers):
        layer._begin()


os.register_at_fork(after_in_child=_after_fork)


def _note_gap(gap: object) -> None:
    logger.warning("messages of Channels may have been missed: %s", gap)


def _check(message: object) -> None:
    if not isinstance(message, dict):
        raise TypeError("a message of Channels is a dict")


def _address(server: ServerID) -> str:
    """A process, as a topic names it."""
    return f"{server.pid}/{server.unique_id}"


def _pack(*what: Any) -> bytes:
    packed: bytes = msgpack.packb(what)
    return packed


def _copy(message: dict[str, Any]) -> dict[str, Any]:
    """A message of its own for each receiver, and only what can travel."""
    copied: dict[str, Any] = msgpack.unpackb(_pack(message), strict_map_key=False)[0]
    return copied
