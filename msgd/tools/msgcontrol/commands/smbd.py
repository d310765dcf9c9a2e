# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Commands for smbd and its printing: shares, clients, children, caches."""

from __future__ import annotations

from collections.abc import Sequence

from msgd.errors import MalformedMessage
from msgd.tools.msgcontrol.command import Command, Refused, ordinary_id
from msgd.wire.control import pack_text, unpack_int
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType


def text_payload(arguments: Sequence[str]) -> bytes:
    """The first argument as a text; without arguments nothing."""
    return pack_text(arguments[0]) if arguments else b""


def _address_payload(arguments: Sequence[str]) -> bytes:
    import ipaddress  # slow to import, and rarely needed

    try:
        ipaddress.ip_address(arguments[0].partition("%")[0])  # IPv6 may name an interface behind %
    except ValueError:
        raise Refused(f"{arguments[0]} is not a valid IP address!") from None
    return pack_text(arguments[0])


def _show_number(message: Message) -> str:
    try:
        return f"{unpack_int(message.data)} children"
    except MalformedMessage as error:
        return f"{error}, from pid {ordinary_id(message.src)}"


NUM_CHILDREN = Command(
    "num-children",
    "ask msgd or smbd how many processes serve its clients",
    MessageType.SMB_TELL_NUM_CHILDREN,
    answer=MessageType.SMB_NUM_CHILDREN,
    show=_show_number,
)
CLOSE_SHARE = Command(
    "close-share",
    "disconnect all clients from a share, or with * from all shares",
    MessageType.SMB_FORCE_TDIS,
    arguments=("SHARE",),
    payload=text_payload,
)
CLOSE_DENIED_SHARE = Command(
    "close-denied-share",
    "disconnect those from a share who may no longer use it",
    MessageType.SMB_FORCE_TDIS_DENIED,
    arguments=("SHARE",),
    payload=text_payload,
)
KILL_CLIENT_IP = Command(
    "kill-client-ip",
    "disconnect the client that has this address",
    MessageType.SMB_KILL_CLIENT_IP,
    arguments=("ADDRESS",),
    payload=_address_payload,
)
NOTIFY_CLEANUP = Command(
    "notify-cleanup", "make smbd's notify daemon forget dead processes", MessageType.SMB_NOTIFY_CLEANUP
)
RELOAD_PRINTERS = Command("reload-printers", "make smbd reload its list of printers", MessageType.PRINTER_PCAP)
DRVUPGRADE = Command(
    "drvupgrade",
    "tell smbd that a printer driver has changed",
    MessageType.PRINTER_DRVUPGRADE,
    arguments=("DRIVER",),
    payload=text_payload,
)
FORCE_ELECTION = Command("force-election", "make nmbd call for a browser election", MessageType.FORCE_ELECTION)
