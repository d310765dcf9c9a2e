# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Commands that every daemon understands: ping, debug levels, reload, shutdown, and what needs no message at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from msgd.config.kinds import LogLevel
from msgd.messaging import Messaging
from msgd.programs.debug_levels import read_text
from msgd.tools.msgcontrol.command import Command, Done, Way, ordinary_id
from msgd.wire.control import pack_text
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType
from msgd.wire.server_id import ServerID


def _debug_payload(arguments: Sequence[str]) -> bytes:
    LogLevel(arguments[0])
    return pack_text(arguments[0])


def _show_pong(message: Message) -> str:
    return f"PONG from pid {ordinary_id(message.src)}"


def _show_debuglevel(message: Message) -> str:
    return f"PID {ordinary_id(message.src)}: {read_text(message.data)}"


def _do_nothing(messaging: Messaging, destinations: Sequence[ServerID], seen: frozenset[int]) -> Done:
    return Done("", is_success=True)


def _clean_up(messaging: Messaging, destinations: Sequence[ServerID], seen: frozenset[int]) -> Done:
    """Remove what dead processes have left, and say in smbcontrol's words whether the one named was among them."""
    (dst,) = destinations
    if messaging.is_alive(dst):
        return Done(f"cleanup({dst.pid}) returned {os.strerror(errno.EAGAIN)}", is_success=False)
    if dst.pid in messaging.clean_up() or dst.pid in seen:
        return Done(f"cleanup({dst.pid}) returned ok", is_success=True)
    return Done(f"cleanup({dst.pid}) returned {os.strerror(errno.ENOENT)}", is_success=False)


PING = Command(
    "ping",
    "ask whether the process answers",
    MessageType.PING,
    answer=MessageType.PONG,
    show=_show_pong,
)
DEBUG = Command(
    "debug",
    "set the debug level: 3, or by class: 'all:3 msgd:5'",
    MessageType.DEBUG,
    arguments=("LEVEL",),
    payload=_debug_payload,
)
DEBUGLEVEL = Command(
    "debuglevel",
    "show the debug levels",
    MessageType.REQ_DEBUGLEVEL,
    answer=MessageType.DEBUGLEVEL,
    show=_show_debuglevel,
)
RELOAD_CONFIG = Command("reload-config", "make the process reload smb.conf", MessageType.SMB_CONF_UPDATED)
RELOAD_CERTS = Command(
    "reload-certs", "make a Samba daemon reload its TLS certificates", MessageType.RELOAD_TLS_CERTIFICATES
)
SHUTDOWN = Command("shutdown", "make the process shut down", MessageType.SHUTDOWN)
DMALLOC_MARK = Command("dmalloc-mark", "set a mark in dmalloc's log", MessageType.REQ_DMALLOC_MARK)
DMALLOC_LOG_CHANGED = Command(
    "dmalloc-log-changed", "log what dmalloc has seen since the mark", MessageType.REQ_DMALLOC_LOG_CHANGED
)
NOOP = Command("noop", "do nothing but look for the process", way=Way.HERE, here=_do_nothing)
MSG_CLEANUP = Command(
    "msg-cleanup",
    "remove what a dead process has left: socket, lock file, names",
    way=Way.HERE,
    here=_clean_up,
    takes_one=True,
)
