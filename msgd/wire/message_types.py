# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The numbers of the message types, and the broadcast class of each.

Source: Samba's messages.h (the numbers only), in tests/wire/vectors/message_types.tsv, which the tests compare.  The
numbers here are those of today's Samba.  Samba 3.0 has the same numbers below 256 and other, decimal ones above; the
vectors list both.
"""

from __future__ import annotations

import enum
import re


class MessageType(enum.IntEnum):
    """Samba's message types by name, without the prefix MSG_."""

    DEBUG = 1
    PING = 2
    PONG = 3
    PROFILE = 4
    REQ_DEBUGLEVEL = 5
    DEBUGLEVEL = 6
    REQ_PROFILELEVEL = 7
    PROFILELEVEL = 8
    REQ_POOL_USAGE = 9
    POOL_USAGE = 10
    REQ_DMALLOC_MARK = 11
    REQ_DMALLOC_LOG_CHANGED = 12
    SHUTDOWN = 13
    ID_CACHE_DELETE = 15
    ID_CACHE_KILL = 16
    SMB_CONF_UPDATED = 33
    RELOAD_TLS_CERTIFICATES = 34
    PREFORK_CHILD_EVENT = 49
    PREFORK_PARENT_EVENT = 50
    REQ_RINGBUF_LOG = 51
    RINGBUF_LOG = 52
    DAEMON_READY_FD = 53
    CLUSTER_LEVEL_UPGRADED = 64
    FORCE_ELECTION = 0x101
    WINS_NEW_ENTRY = 0x102
    SEND_PACKET = 0x103
    PRINTER_NOTIFY2 = 0x202
    PRINTER_DRVUPGRADE = 0x203
    PRINTERDATA_INIT_RESET = 0x204
    PRINTER_UPDATE = 0x205
    PRINTER_MOD = 0x206
    PRINTER_PCAP = 0x207
    SMB_FORCE_TDIS = 0x302
    SMB_BREAK_REQUEST = 0x306
    SMB_KERNEL_BREAK = 0x30A
    SMB_FILE_RENAME = 0x30B
    SMB_INJECT_FAULT = 0x30C
    SMB_BLOCKING_LOCK_CANCEL = 0x30D
    SMB_NOTIFY = 0x30E
    SMB_STAT_CACHE_DELETE = 0x30F
    PVFS_NOTIFY = 0x310
    SMB_CLOSE_FILE = 0x313
    SMB_NOTIFY_CLEANUP = 0x314
    SMB_SCAVENGER = 0x315
    SMB_KILL_CLIENT_IP = 0x316
    SMB_TELL_NUM_CHILDREN = 0x317
    SMB_NUM_CHILDREN = 0x318
    SMB_NOTIFY_CANCEL_DELETED = 0x319
    SMB_NOTIFY_REC_CHANGE = 0x31A
    SMB_NOTIFY_TRIGGER = 0x31B
    SMB_NOTIFY_GET_DB = 0x31C
    SMB_NOTIFY_DB = 0x31D
    SMB_NOTIFY_REC_CHANGES = 0x31E
    SMB_NOTIFY_STARTED = 0x31F
    SMB_SLEEP = 0x320
    SMB_FORCE_TDIS_DENIED = 0x321
    SMB_IP_DROPPED = 0x322
    WINBIND_FINISHED = 0x401
    WINBIND_FORGET_STATE = 0x402
    WINBIND_ONLINE = 0x403
    WINBIND_OFFLINE = 0x404
    WINBIND_ONLINESTATUS = 0x405
    WINBIND_VALIDATE_CACHE = 0x408
    WINBIND_DUMP_DOMAIN_LIST = 0x409
    WINBIND_IP_DROPPED = 0x40A
    WINBIND_DOMAIN_ONLINE = 0x40B
    WINBIND_DOMAIN_OFFLINE = 0x40C
    WINBIND_RELOAD_TRUSTED_DOMAINS = 0x40D
    WINBIND_DISCONNECT_DC = 0x40E
    SMBXSRV_SESSION_CLOSE = 0x600
    SMBXSRV_CONNECTION_PASS = 0x601
    SMBXSRV_CONNECTION_PASSED = 0x602
    SMBXSRV_CONNECTION_DROP = 0x603
    RPCD_WITNESS_REGISTRATION_UPDATE = 0x680
    BRL_RETRY = 0x700
    PVFS_RETRY_OPEN = 0x701
    IRPC = 0x702
    NTVFS_OPLOCK_BREAK = 0x703
    DREPL_ALLOCATE_RID = 0x704
    AUTH_LOG = 0x800
    DSDB_LOG = 0x801
    DSDB_PWD_LOG = 0x802
    GROUP_LOG = 0x803
    VFS_AIO_RATELIMIT_READ_NODE_SUMMARY = 0x900
    VFS_AIO_RATELIMIT_WRITE_NODE_SUMMARY = 0x901
    DBWRAP_MODIFIED = 4003
    RPC_HOST_NEW_CLIENT = 4004
    RPC_WORKER_STATUS = 4005
    RPC_DUMP_STATUS = 4006
    RPC_WORKER_INFO = 4007


TMP_BASE = 0xF000
"""The first temporary type: numbers from here up have no fixed meaning and are assigned at run time."""

TYPE_MAX = 0xFFFFFFFF

_NUMBER = re.compile("0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}")
_SHOWN = 64
"""Characters of a wrong name that the error message repeats."""


class MessageClass(enum.Flag):
    """The broadcast classes: each message type belongs to one, and a process listens to some of them.

    ALL are those of Samba 3.0, and what a process of Samba's hears.  PUBSUB is msgd's own, for publications: only those
    who subscribe listen to it.
    """

    GENERAL = 1
    NMBD = 2
    PRINT = 4
    SMBD = 8
    WINBIND = 16
    ALL = GENERAL | NMBD | PRINT | SMBD | WINBIND
    PUBSUB = 32


PUBSUB_BLOCK = 0x6D7370
"""The block of 256 types of pubsub.py: "msp" in ASCII, far from the numbers that Samba and programs give out."""

_CLASSES_BY_RANGE = {
    1: MessageClass.NMBD,
    2: MessageClass.PRINT,
    3: MessageClass.SMBD,
    4: MessageClass.WINBIND,
    PUBSUB_BLOCK: MessageClass.PUBSUB,
}
"""The class of each block of 256 types: those from 0x100 to 0x4ff, and that of the publications."""


def message_class(message_type: int) -> MessageClass:
    """The class of a type: that of its block of 256 numbers, GENERAL outside these blocks."""
    return _CLASSES_BY_RANGE.get(message_type >> 8, MessageClass.GENERAL)


def class_names(classes: MessageClass) -> str:
    """The names of the classes, separated by spaces."""
    return " ".join(one.name for one in classes if one.name is not None)


def type_name(message_type: int) -> str:
    """The name of a type for people to read: `PING`, or the number in hex if it has no name."""
    try:
        return MessageType(message_type).name
    except ValueError:
        return f"{message_type:#x}"


def type_number(text: str) -> int:
    """The number of a type that is given by its name (in any case) or by its number (decimal, or hex with 0x).

    Raises ValueError with one line that says what is wrong.
    """
    named = MessageType.__members__.get(text.upper())
    if named is not None:
        return named
    digits = text.removeprefix("0x").removeprefix("0X")
    if _NUMBER.fullmatch(text):
        number = int(digits, 10 if digits == text else 16)
        if number <= TYPE_MAX:
            return number
    raise ValueError(f"{text[:_SHOWN]!r} is not a message type's name or number (0 to {TYPE_MAX:#x})")
