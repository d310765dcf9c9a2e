# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""ServerID: the address of a process, or of one context (task) in it.

On the wire it has 24 bytes, little-endian: u64 pid, u32 task_id, u32 vnn, u64 unique_id.  As text it is
`[vnn:]pid[.task][/unique]`, as Samba prints it.

Source: Samba's server_id, observed in the golden datagrams (tests/wire/vectors).
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from msgd.errors import MalformedMessage

NONCLUSTER_VNN = 0xFFFFFFFF
"""The node number (vnn) of a machine that is not part of a cluster."""

UNIQUE_ID_NOT_TO_VERIFY = 0xFFFFFFFFFFFFFFFF
"""As the unique id of a destination: the present owner of the pid.  No process has it as its own."""

UNIQUE_ID_UNKNOWN = 0
"""Samba's tools send this when they know only the pid.  A receiver treats it as "not to verify"."""

ANY_UNIQUE_ID = frozenset((UNIQUE_ID_UNKNOWN, UNIQUE_ID_NOT_TO_VERIFY))
"""The unique ids that address the present owner of a pid, whichever process that is."""

SERVER_ID = struct.Struct("<QIIQ")

PID_MAX = 0x7FFFFFFF
"""The largest pid: pid_t is an int on Linux."""

TASK_ID_MAX = 0xFFFFFFFE
"""The largest task id of a context."""

EVERY_TASK = 0xFFFFFFFF
"""As the task id of a destination: each context of the process that listens to the class of the message.

msgd uses this for broadcasts to its own processes.  Samba does not know it: there a task id always names one context.
"""

_TEXT = re.compile(
    r"(?:(?P<vnn>\d{1,10}):)?(?P<pid>\d{1,10})(?:\.(?P<task>\d{1,10}))?(?:/(?P<unique>\d{1,20}))?", re.ASCII
)


class ServerID(NamedTuple):
    """The address of a context: number `task_id` in process `pid` on node `vnn`.

    `unique_id` distinguishes two processes that had the same pid one after the other.
    """

    pid: int
    task_id: int = 0
    vnn: int = NONCLUSTER_VNN
    unique_id: int = UNIQUE_ID_NOT_TO_VERIFY

    def __str__(self) -> str:
        vnn = "" if self.vnn == NONCLUSTER_VNN else f"{self.vnn}:"
        task = f".{self.task_id}" if self.task_id else ""
        unique = "" if self.unique_id in ANY_UNIQUE_ID else f"/{self.unique_id}"
        return f"{vnn}{self.pid}{task}{unique}"

    @property
    def process(self) -> str:
        """The process in it as text: `[vnn:]pid`."""
        return str(self.pid) if self.vnn == NONCLUSTER_VNN else f"{self.vnn}:{self.pid}"

    @classmethod
    def parse(cls, text: str) -> ServerID:
        """Read `[vnn:]pid[.task][/unique]`.

        Raises ValueError with one line that says what is wrong.
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a server id; write PID, PID.TASK or PID.TASK/UNIQUE")
        vnn, pid, task, unique = (int(part) if part is not None else None for part in match.groups())
        server_id = cls(
            pid or 0,
            task or 0,
            NONCLUSTER_VNN if vnn is None else vnn,
            UNIQUE_ID_NOT_TO_VERIFY if unique is None else unique,
        )
        server_id.check()
        return server_id

    @classmethod
    def of(cls, address: ServerID | int | str) -> ServerID:
        """Convert a ServerID, a pid or server-id text.  Raises ValueError if it is not a valid address."""
        if isinstance(address, str):
            return cls.parse(address)
        server_id = address if isinstance(address, ServerID) else cls(address)
        server_id.check()
        return server_id

    def check(self) -> None:
        """Raise ValueError if a field does not fit the format, or the pid cannot be that of a process."""
        if not 0 < self.pid <= PID_MAX:
            raise ValueError(f"pid {self.pid} is not a process id (1 to {PID_MAX})")
        if not 0 <= self.task_id <= EVERY_TASK:
            raise ValueError(f"task id {self.task_id} does not fit 32 bits")
        if not 0 <= self.vnn <= 0xFFFFFFFF:
            raise ValueError(f"vnn {self.vnn} does not fit 32 bits")
        if not 0 <= self.unique_id <= UNIQUE_ID_NOT_TO_VERIFY:
            raise ValueError(f"unique id {self.unique_id} does not fit 64 bits")

    def pack(self) -> bytes:
        """The 24 bytes on the wire."""
        return SERVER_ID.pack(*self)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> ServerID:
        """Read the 24 bytes on the wire.  Raises MalformedMessage if there are more or fewer."""
        if len(data) != SERVER_ID.size:
            raise MalformedMessage(f"a server id has {SERVER_ID.size} bytes, not {len(data)}")
        return cls._make(SERVER_ID.unpack(data))
