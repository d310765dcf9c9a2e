"""ServerID: the address of a process, or of one context (task) inside it.

On the wire 24 bytes, little-endian: u64 pid, u32 task_id, u32 vnn, u64 unique_id.  As text, as Samba prints it,
`[vnn:]pid[.task][/unique]`.  (Samba's server_id; observed in the golden datagrams.)
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from msgd.errors import MalformedMessage

NONCLUSTER_VNN = 0xFFFFFFFF
"""The node number of a machine that is in no cluster."""

UNIQUE_ID_NOT_TO_VERIFY = 0xFFFFFFFFFFFFFFFF
"""As a destination's unique id: whoever has the pid now.  No process has it as its own."""

UNIQUE_ID_UNKNOWN = 0
"""What Samba's tools write when they know only the pid; a receiver takes it like "not to verify"."""

ANY_PROCESS = frozenset((UNIQUE_ID_UNKNOWN, UNIQUE_ID_NOT_TO_VERIFY))
"""The unique ids that address a pid whoever holds it."""

SERVER_ID = struct.Struct("<QIIQ")

PID_MAX = 0x7FFFFFFF
"""Linux' pid_t is an int; no larger pid is anybody's."""

TASK_ID_MAX = 0xFFFFFFFE
"""The largest number that a context can have."""

EVERY_TASK = 0xFFFFFFFF
"""As a destination's task id: each context of the process that listens to the message's class.

msgd broadcasts to its own processes like this; Samba's know task ids of contexts only.
"""

_TEXT = re.compile(
    r"(?:(?P<vnn>\d{1,10}):)?(?P<pid>\d{1,10})(?:\.(?P<task>\d{1,10}))?(?:/(?P<unique>\d{1,20}))?", re.ASCII
)


class ServerID(NamedTuple):
    """Address of a context: process `pid`, its context number `task_id`, on node `vnn`.

    `unique_id` tells two processes apart that had the same pid one after the other.
    """

    pid: int
    task_id: int = 0
    vnn: int = NONCLUSTER_VNN
    unique_id: int = UNIQUE_ID_NOT_TO_VERIFY

    def __str__(self) -> str:
        vnn = "" if self.vnn == NONCLUSTER_VNN else f"{self.vnn}:"
        task = f".{self.task_id}" if self.task_id else ""
        unique = "" if self.unique_id in ANY_PROCESS else f"/{self.unique_id}"
        return f"{vnn}{self.pid}{task}{unique}"

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
        """The ServerID of a server id, a pid or server-id text; ValueError if it is none."""
        if isinstance(address, str):
            return cls.parse(address)
        server_id = address if isinstance(address, ServerID) else cls(address)
        server_id.check()
        return server_id

    def check(self) -> None:
        """Raise ValueError if a field does not fit the format or cannot belong to a process."""
        if not 0 < self.pid <= PID_MAX:
            raise ValueError(f"pid {self.pid} is not a process id (1 to {PID_MAX})")
        if not 0 <= self.task_id <= EVERY_TASK:
            raise ValueError(f"task id {self.task_id} does not fit 32 bits")
        if not 0 <= self.vnn <= 0xFFFFFFFF:
            raise ValueError(f"vnn {self.vnn} does not fit 32 bits")
        if not 0 <= self.unique_id <= UNIQUE_ID_NOT_TO_VERIFY:
            raise ValueError(f"unique id {self.unique_id} does not fit 64 bits")

    def pack(self) -> bytes:
        """The 24 bytes of the wire."""
        return SERVER_ID.pack(*self)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> ServerID:
        """Read the 24 bytes of the wire; MalformedMessage if there are more or fewer."""
        if len(data) != SERVER_ID.size:
            raise MalformedMessage(f"a server id has {SERVER_ID.size} bytes, not {len(data)}")
        return cls._make(SERVER_ID.unpack(data))
