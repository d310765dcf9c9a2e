# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Commands for winbindd: going online and offline, its caches and its domains.

Whether winbindd is offline is said by a record of its cache, winbindd_cache.tdb in the state directory: the key
WINBINDD_OFFLINE with the time since when.  smbcontrol changes it before it sends the message, and so does this.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import struct
import time
from collections.abc import Iterator
from typing import Any

from msgd.config import Config
from msgd.errors import BackendUnavailable, TransportError
from msgd.tools.msgcontrol.command import Command, ordinary_id
from msgd.tools.msgcontrol.commands.smbd import text_payload
from msgd.wire.control import unpack_text
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType
from msgd.wire.server_id import ServerID

_CACHE = "winbindd_cache.tdb"
_OFFLINE = b"WINBINDD_OFFLINE\0"
_TIME = struct.Struct("<i")


def _note_online(config: Config) -> None:
    with _cache(config) as cache:
        if _OFFLINE in cache:
            cache.delete(_OFFLINE)


def _note_offline(config: Config) -> None:
    with _cache(config) as cache:
        cache.store(_OFFLINE, _TIME.pack(int(time.time()) & 0x7FFFFFFF))


@contextlib.contextmanager
def _cache(config: Config) -> Iterator[Any]:
    """winbindd's cache, opened for writing.  winbindd has it open all the time; libtdb's locks keep the two apart."""
    path = os.path.join(config.state_directory, _CACHE)
    try:
        tdb = importlib.import_module("tdb")
    except ImportError:
        raise BackendUnavailable(f"{path} cannot be changed without python3-tdb; install it") from None
    try:
        database = tdb.Tdb(path, 0, tdb.DEFAULT, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise TransportError(
            f"cannot open {path} for writing: {error.strerror}; is winbindd running, and is this its smb.conf?"
        ) from error
    try:
        yield database
    except RuntimeError as error:  # libtdb's own errors
        raise TransportError(f"{path}: {error}") from error
    finally:
        database.close()


def _show_with_pid(message: Message) -> str:
    return f"PID {ordinary_id(message.src)}: {unpack_text(message.data)}"


def _show_validity(message: Message) -> str:
    word = "" if message.data[:1] == b"\0" else "NOT "
    return f"Winbindd cache is {word}valid. (answer from pid {ordinary_id(message.src)})"


ONLINE = Command("online", "make winbindd go online", MessageType.WINBIND_ONLINE, before=_note_online)
OFFLINE = Command("offline", "make winbindd go offline", MessageType.WINBIND_OFFLINE, before=_note_offline)
ONLINESTATUS = Command(
    "onlinestatus",
    "show which domains winbindd is online with",
    MessageType.WINBIND_ONLINESTATUS,
    answer=MessageType.WINBIND_ONLINESTATUS,
    show=_show_with_pid,
)
VALIDATE_CACHE = Command(
    "validate-cache",
    "make winbindd check its cache",
    MessageType.WINBIND_VALIDATE_CACHE,
    answer=MessageType.WINBIND_VALIDATE_CACHE,
    show=_show_validity,
    data_of=ServerID.pack,
    is_answered_at_once=False,
    is_answered_by_child=True,
)
DUMP_DOMAIN_LIST = Command(
    "dump-domain-list",
    "show what winbindd knows of its domains, or of the DOMAIN that follows",
    MessageType.WINBIND_DUMP_DOMAIN_LIST,
    arguments=("[DOMAIN]",),
    payload=text_payload,
    answer=MessageType.WINBIND_DUMP_DOMAIN_LIST,
    show=_show_with_pid,
)
DISCONNECT_DC = Command(
    "disconnect-dc", "make winbindd close its connections to domain controllers", MessageType.WINBIND_DISCONNECT_DC
)
IP_DROPPED = Command(
    "ip-dropped",
    "tell winbindd that this machine has lost an address",
    MessageType.WINBIND_IP_DROPPED,
    arguments=("ADDRESS",),
    payload=text_payload,
)
