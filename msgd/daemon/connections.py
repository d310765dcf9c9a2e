# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The connection processes as the main process sees them: reaping, adopting and counting them."""

from __future__ import annotations

import logging
import signal
import struct
from collections.abc import Callable, Collection
from functools import partial

from msgd.daemon.children import Children
from msgd.daemon.gateway.process import uid_served
from msgd.daemon.loop import Loop
from msgd.daemon.metrics.metrics import Metrics
from msgd.daemon.shared_pace import SharedPace, Told
from msgd.errors import MsgdError, NoSuchProcess
from msgd.events import ADOPTED_ENDED, CONNECTION_FAILED, and_others, fields
from msgd.messaging import Messaging
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType
from msgd.wire.server_id import ServerID

logger = logging.getLogger("msgd.daemon")

_NUMBER = struct.Struct("<I")
"""The answer to SMB_TELL_NUM_CHILDREN, in smbd's format."""


class ConnectionProcesses:
    """Keeps `children` up to date.

    `clean_up` is called when one may have left something in the directory, `ended` whenever some may have ended, with
    the uids that they served.
    """

    def __init__(
        self,
        children: Children,
        loop: Loop,
        messaging: Messaging,
        pace: SharedPace,
        metrics: Metrics | None,
        clean_up: Callable[[], None],
        ended: Callable[[Collection[int]], None],
    ) -> None:
        self._children = children
        self._loop = loop
        self._messaging = messaging
        self._pace = pace
        self._metrics = metrics
        self._clean_up = clean_up
        self._ended = ended
        self._adopted: dict[int, ServerID] = {}
        """The addresses of adopted processes; their pids alone may be other processes' by now."""
        self._untold: dict[int, dict[int, bytes]] = {}
        """By pid: what a child that is just starting is to be told when it can hear, by type."""
        children.on_running = self._tell_late

    def reap(self) -> None:
        """Reap the children that have ended, and log those that failed."""
        failed, uids = False, set()
        if self._metrics is not None:
            self._metrics.reap()
        for pid, uid, status in self._children.reap():
            uids.add(uid)
            self._untold.pop(pid, None)
            if self._metrics is not None:
                self._metrics.ended(pid)
            if status:
                failed = True
                how = f"was killed by {_signal_name(-status)}" if status < 0 else f"failed with status {status}"
                if number := self._pace.due(Told.CONNECTION_ENDED, uid):
                    about_it = fields(CONNECTION_FAILED, CONNECTION_PID=pid, PEER_UID=uid, STATUS=status, NUMBER=number)
                    text = "the connection process %d of uid %d %s%s"
                    logger.warning(text, pid, uid, how, and_others(number), extra=about_it)
        if failed:
            self._clean_up()
        self._ended(uids)

    def adopt(self) -> None:
        """Count the connection processes that an earlier main process has left."""
        try:
            names = self._messaging.names()
        except MsgdError as error:
            logger.error("%s; connection processes of an earlier msgd are not counted", error)
            return
        for name, addresses in names.items():
            uid = uid_served(name)
            if uid is not None:
                for address in addresses:
                    self._adopt_one(address, uid)
        if len(self._children):
            logger.info("%d connection processes of an earlier msgd go on", len(self._children))

    def hand_on(self, message: Message) -> None:
        """Tell all connection processes what the main process has been told.

        A child that was forked a moment ago has the main process's state of that time, and no address yet.
        """
        for pid in self._children.forked_pids():
            if self._children.is_starting(pid):
                self._untold.setdefault(pid, {})[message.type] = message.data
            else:
                self._tell(ServerID(pid), message.type, message.data)
        for address in list(self._adopted.values()):
            self._tell(address, message.type, message.data)

    def _tell_late(self, pid: int) -> None:
        for message_type, data in self._untold.pop(pid, {}).items():
            self._tell(ServerID(pid), message_type, data)

    def _tell(self, dst: ServerID, message_type: int, data: bytes) -> None:
        try:
            self._messaging.send(dst, message_type, data)
        except NoSuchProcess:
            return  # it has ended
        except MsgdError as error:
            logger.warning("the connection process %d is not told: %s", dst.pid, error)

    def tell_number(self, message: Message) -> None:
        """Answer SMB_TELL_NUM_CHILDREN with the number that run now: a SIGCHLD or a pidfd may be unhandled yet."""
        self.reap()
        for pid, pidfd in self._children.ended_adopted():
            self._release(pid, pidfd)
        number = _NUMBER.pack(len(self._children))
        self._messaging.reply(message, MessageType.SMB_NUM_CHILDREN, number)

    def _adopt_one(self, address: ServerID, uid: int) -> None:
        try:
            pidfd = self._messaging.watch(address)
        except NoSuchProcess:
            return
        except MsgdError as error:  # no descriptor is left
            logger.error("%s; the connection process %d is not counted", error, address.pid)
            return
        self._children.adopt(address.pid, pidfd, uid)
        self._adopted[address.pid] = address
        self._loop.on_readable(pidfd, partial(self._release, address.pid, pidfd))

    def _release(self, pid: int, pidfd: int) -> None:
        """An adopted process has ended."""
        self._loop.on_readable(pidfd, None)
        self._adopted.pop(pid, None)
        uid = self._children.release(pid)
        about_it = fields(ADOPTED_ENDED, CONNECTION_PID=pid, PEER_UID=uid)
        logger.info("the connection process %d of uid %d, of an earlier msgd, has ended", pid, uid, extra=about_it)
        self._clean_up()  # its exit status is unknown
        self._ended((uid,))


def _signal_name(number: int) -> str:
    """The name of a signal; the signal module has names for only two of the real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
