# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The table of msgcontrol's commands to a destination.  One more command is one more row, from a file beside this."""

from __future__ import annotations

from msgd.tools.msgcontrol.command import Command
from msgd.tools.msgcontrol.commands import developer, general, idmap, profiling, raw, smbd, texts, winbindd

COMMANDS: tuple[Command, ...] = (
    general.PING,
    general.DEBUG,
    general.DEBUGLEVEL,
    general.RELOAD_CONFIG,
    general.RELOAD_CERTS,
    general.SHUTDOWN,
    smbd.NUM_CHILDREN,
    texts.POOL_USAGE,
    texts.RINGBUF_LOG,
    profiling.PROFILE,
    profiling.PROFILELEVEL,
    smbd.CLOSE_SHARE,
    smbd.CLOSE_DENIED_SHARE,
    smbd.KILL_CLIENT_IP,
    smbd.NOTIFY_CLEANUP,
    smbd.RELOAD_PRINTERS,
    smbd.DRVUPGRADE,
    smbd.FORCE_ELECTION,
    idmap.IDMAP,
    winbindd.ONLINE,
    winbindd.OFFLINE,
    winbindd.ONLINESTATUS,
    winbindd.VALIDATE_CACHE,
    winbindd.DUMP_DOMAIN_LIST,
    winbindd.DISCONNECT_DC,
    winbindd.IP_DROPPED,
    texts.RPC_DUMP_STATUS,
    texts.RPC_DUMP_WORKER_STATUS,
    general.DMALLOC_MARK,
    general.DMALLOC_LOG_CHANGED,
    general.NOOP,
    general.MSG_CLEANUP,
    developer.INJECT,
    developer.SLEEP,
    raw.SEND,
    raw.CALL,
)

LEFT_TO_SMBCONTROL = ("stacktrace", "printnotify", "nodestatus")
"""Commands of smbcontrol that msgcontrol does not have: they trace a process, or carry C structures."""
