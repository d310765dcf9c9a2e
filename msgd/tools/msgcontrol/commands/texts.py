# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Commands that ask for a text: what a process has in memory, what it has logged, what its RPC services do.

A pipe goes along with some of them, and the process writes the text into it.
"""

from __future__ import annotations

from msgd.tools.msgcontrol.command import Command, Way
from msgd.wire.control import unpack_text
from msgd.wire.header import Message
from msgd.wire.message_types import MessageType


def _show_text(message: Message) -> str:
    return unpack_text(message.data)


POOL_USAGE = Command("pool-usage", "show what the process has in memory", MessageType.REQ_POOL_USAGE, way=Way.PIPE)
RPC_DUMP_STATUS = Command(
    "rpc-dump-status", "show the state of Samba's RPC host", MessageType.RPC_DUMP_STATUS, way=Way.PIPE
)
RPC_DUMP_WORKER_STATUS = Command(
    "rpc-dump-worker-status", "show the state of Samba's RPC workers", MessageType.RPC_WORKER_INFO, way=Way.PIPE
)
RINGBUF_LOG = Command(
    "ringbuf-log",
    "show the latest of the log (of Samba's daemons with logging = ringbuf)",
    MessageType.REQ_RINGBUF_LOG,
    answer=MessageType.RINGBUF_LOG,
    show=_show_text,
)
