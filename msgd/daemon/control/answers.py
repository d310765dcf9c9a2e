# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The control messages that every process of the daemon obeys and answers, as Samba's daemons do.

Rule 1. What a process is told about how much to log and to count, the main process hands on to its connection
        processes, as smbd does (`hand_on`).
Rule 2. Types that are for other daemons of Samba's come with a message to all.  They are ignored, and are no drops in
        the log.  A type that asks for an answer is not among them: whoever asks is told that there is no handler.
Rule 3. A descriptor that comes with a message is somebody's stdout.  A process writes into it what fits at once, and
        never waits for a reader.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable

from msgd import _registry
from msgd.daemon.control.memory_report import memory_report
from msgd.daemon.control.profile import Profile
from msgd.daemon.control.text_writer import write_at_once
from msgd.daemon.settings import Settings
from msgd.errors import MalformedMessage
from msgd.messaging import Messaging
from msgd.wire.control import Fault, ProfileMode, pack_int, pack_text, unpack_int
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType

logger = logging.getLogger("msgd.daemon")

HandOn = Callable[[Message], None]

FOR_OTHERS = (
    MessageType.REQ_DMALLOC_MARK,
    MessageType.REQ_DMALLOC_LOG_CHANGED,
    MessageType.ID_CACHE_DELETE,
    MessageType.ID_CACHE_KILL,
    MessageType.RELOAD_TLS_CERTIFICATES,
    MessageType.FORCE_ELECTION,
    MessageType.SEND_PACKET,
    MessageType.PRINTER_NOTIFY2,
    MessageType.PRINTER_DRVUPGRADE,
    MessageType.PRINTER_PCAP,
    MessageType.SMB_FORCE_TDIS,
    MessageType.SMB_FORCE_TDIS_DENIED,
    MessageType.SMB_NOTIFY_CLEANUP,
    MessageType.SMB_KILL_CLIENT_IP,
    MessageType.SMB_IP_DROPPED,
    MessageType.WINBIND_ONLINE,
    MessageType.WINBIND_OFFLINE,
    MessageType.WINBIND_IP_DROPPED,
    MessageType.WINBIND_DISCONNECT_DC,
    MessageType.RPC_DUMP_STATUS,
    MessageType.RPC_WORKER_INFO,
)
"""What smbcontrol and Samba's daemons send to everybody, and msgd has no use for."""

_FOR_DEVELOPERS = (MessageType.SMB_INJECT_FAULT, MessageType.SMB_SLEEP)


class ControlAnswers:
    """Answers for one process.  `before` is called before each message that reads or changes what signals change."""

    def __init__(self, settings: Settings, messaging: Messaging, what: str) -> None:
        self._settings = settings
        self._messaging = messaging
        self._what = what
        self._profile = Profile(messaging)
        self._profile.set(settings.profile_mode)

    def serve(self, before: Callable[[], None], hand_on: HandOn | None = None) -> None:
        """Register the handlers; `hand_on` takes the messages that are for the process's children too (Rule 1)."""
        register = self._messaging.register
        self._settings.debug_levels.serve(self._messaging, before)
        register(MessageType.REQ_POOL_USAGE, self._tell_memory)
        register(MessageType.REQ_RINGBUF_LOG, self._tell_log)
        register(MessageType.PROFILE, self._set_profile)
        register(MessageType.REQ_PROFILELEVEL, self._tell_profile)
        if hand_on is not None:
            register(MessageType.DEBUG, hand_on)
            register(MessageType.PROFILE, hand_on)
        for message_type in FOR_OTHERS:
            register(message_type, _ignore)
        if _registry.DEVELOPER:
            register(MessageType.SMB_INJECT_FAULT, _fail)
            register(MessageType.SMB_SLEEP, _sleep)
        else:
            for message_type in _FOR_DEVELOPERS:
                register(message_type, _ignore)

    def _tell_memory(self, message: Message) -> None:
        """Write the report into the descriptor that has come along, as Samba's daemons do."""
        if not message.fds:
            logger.info("REQ_POOL_USAGE from %s came without a descriptor to write to", message.src)
            return
        text = memory_report(self._what) + self._profile.report()
        left = write_at_once(message.fds[0], text.encode())
        if left:
            logger.info("the descriptor of %s took all but %d bytes of the report", message.src, left)

    def _tell_log(self, message: Message) -> None:
        self._messaging.reply(message, MessageType.RINGBUF_LOG, pack_text(self._settings.latest_log()))

    def _set_profile(self, message: Message) -> None:
        try:
            mode = ProfileMode(unpack_int(message.data))
        except (MalformedMessage, ValueError):
            logger.error("PROFILE from %s: %r is no mode; nothing is changed", message.src, message.data[:16])
            return
        self._profile.set(mode)
        if mode is not ProfileMode.FLUSH:
            self._settings.profile_mode = mode
        logger.info("profiling set to %s by %s", mode.name.lower(), message.src)

    def _tell_profile(self, message: Message) -> None:
        self._messaging.reply(message, MessageType.PROFILELEVEL, pack_int(self._profile.level))


def _ignore(message: Message) -> None:
    """It is for another daemon."""


def _fail(message: Message) -> None:
    fault = Fault(unpack_int(message.data))
    logger.error("SMB_INJECT_FAULT from %s: %s", message.src, fault.name)
    os.kill(os.getpid(), signal.SIGABRT if fault is Fault.INTERNAL else fault)


def _sleep(message: Message) -> None:
    seconds = unpack_int(message.data)
    logger.error("SMB_SLEEP from %s: for %d seconds", message.src, seconds)
    time.sleep(seconds)
