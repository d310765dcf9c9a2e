# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The commands of developers: inject a fault, or make a process sleep.

They are sent only if msgd was configured with --enable-developer, as smbcontrol sends them only if it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgd import _registry
from msgd.tools.msgcontrol.command import Command, Refused
from msgd.wire.control import Fault, pack_int, pack_unsigned
from msgd.wire.message_types import MessageType

_FAULTS = {fault.name.lower(): fault for fault in Fault}
_SLEEP_MAX = 3600
"""Seconds: smbcontrol's limit."""


def _check(what: str) -> None:
    if not _registry.DEVELOPER:
        raise Refused(f"{what} is only available in developer and self test builds (configure.py --enable-developer)")


def _fault_payload(arguments: Sequence[str]) -> bytes:
    _check("Fault injection")
    fault = _FAULTS.get(arguments[0].lower())
    if fault is None:
        raise ValueError(f"the faults are {', '.join(_FAULTS)}")
    return pack_int(fault)


def _sleep_payload(arguments: Sequence[str]) -> bytes:
    _check("Sleep")
    if not (arguments[0].isascii() and arguments[0].isdecimal() and 1 <= int(arguments[0]) <= _SLEEP_MAX):
        raise ValueError(f"the time is from 1 to {_SLEEP_MAX} seconds")
    return pack_unsigned(int(arguments[0]))


INJECT = Command(
    "inject",
    "make the process fail: bus, hup, term, internal, segv (developer builds)",
    MessageType.SMB_INJECT_FAULT,
    arguments=("FAULT",),
    payload=_fault_payload,
)
SLEEP = Command(
    "sleep",
    "make the process sleep (developer builds)",
    MessageType.SMB_SLEEP,
    arguments=("SECONDS",),
    payload=_sleep_payload,
)
