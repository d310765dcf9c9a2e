# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""One receiving process of the dgram transport: its connected socket, its queue and its fragment cookies.

Rule 1. Each destination has a connected socket of its own.  This saves the path look-up of each send, and the kernel
        reports a connected socket writable as soon as its receiver has read from a full queue (10 datagrams by
        default, net.unix.max_dgram_qlen).
Rule 2. Nothing overtakes the queue.  The head is sent first, and each fragment only after the one before it.  Where
        the receiver stopped taking fragments, `sent_bytes` says where to go on.
Rule 3. All fragments of a message carry the same cookie, and no two messages in a row carry the same one.  A message
        that is repeated on a new socket is repeated from its first fragment under a new cookie, so that the receiver
        never joins two halves.
Rule 4. Fragments are as long as the receiver's lock file says that it reads: 1024 bytes if it says nothing, as with
        Samba.  Where the kernel has no memory for a long one, the message goes on in short ones.
Rule 5. A receiver that reads longer datagrams reads batches as well, and short messages that wait in the queue go in
        batches.  A full socket takes 10 datagrams at a time, and each costs a wake-up.  A batch that the socket does
        not take stays as it is until it has been sent, so that an attempt costs no more than the system call.

Why long fragments rather than a sealed memfd that rides on one datagram: the memfd was measured first, and reached a
third of their throughput at 64 KiB, less than half at 1 MiB and 0.6 at 16 MiB.  docs/architecture.md says why.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import Collection, Sequence

from msgd.backends.out_queue import OutQueue
from msgd.drops import Drops
from msgd.errors import TransportError
from msgd.linux import send_blocking, unix_socket
from msgd.presence import Presence, Process
from msgd.wire.dgram import (
    BATCH_ITEM,
    COOKIE_MAX,
    DATAGRAM_MAX,
    LONG_DATAGRAM_MAX,
    WHOLE_COOKIE,
    fragments,
    pack_batch,
)
from msgd.wire.message_types import type_name

BATCH_BYTES = 1 << 15
"""The most bytes that are put into one batch: half of what a receiver reads, so that some fit one send buffer."""

_LONGEST_BLOCKING_SEND = 1.0
"""Seconds one send may block.  A sender that is killed after its wake-up passes it on to nobody; the others then retry
after this time."""

_TOO_LONG = frozenset((errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM))
"""Errors of the kernel where it has no memory for a long datagram, or the send buffer is too small for it."""

_NOBODY_LISTENS = frozenset((errno.ENOENT, errno.ECONNREFUSED, errno.EPROTOTYPE))


class Destination:
    """A connected socket to one process, and the messages that wait for room in that process's socket.

    `unique_id` is that of the process when the socket was connected.  `own_pid` goes into the fragments.
    """

    __slots__ = (
        "_batch", "_cookie", "_longest", "_own_pid", "_reads", "_sent_bytes", "pid", "queue", "reads_batches",
        "socket", "unique_id",
    )  # fmt: skip

    def __init__(self, process: Process, own_pid: int, connected: socket.socket, queue: OutQueue) -> None:
        self.pid = process.pid
        self.unique_id = process.unique_id
        self.socket = connected
        self.queue = queue
        self._own_pid = own_pid
        self._longest = self._reads = max(DATAGRAM_MAX, min(process.longest_datagram, LONG_DATAGRAM_MAX))
        self.reads_batches = self._reads > DATAGRAM_MAX
        self._batch: tuple[bytes, int] | None = None
        """The datagram for the first messages of the queue, and how many they are; None if it is not made."""
        # A random start: an earlier socket with this number, in this process or in one that had its pid, may have left
        # an unfinished message at the receiver.
        self._cookie = int.from_bytes(os.urandom(8)) % COOKIE_MAX + 1
        self._sent_bytes = 0  # of the message under this cookie, in fragments

    def begin_message(self) -> None:
        """Make the next transmit() start a message from its first fragment, under a new cookie."""
        self._cookie = self._cookie % COOKIE_MAX + 1
        self._sent_bytes = 0
        self._longest = self._reads

    def transmit(self, header: bytes, message: bytes, fds: Collection[int]) -> None:
        """Send a message, or what is left of it, without blocking.

        If `header` is empty, `message` is header and payload, and fits one datagram; otherwise it is the payload.
        Raises OSError: BlockingIOError if the receiver's socket is full, and then the next call goes on where this one
        stopped; ConnectionError if the receiver has closed its socket.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        if header:
            try:
                self._transmit_fragments(header, message, rights)
            except OSError as error:
                if error.errno not in _TOO_LONG or self._longest == DATAGRAM_MAX:
                    raise
                self._longest = DATAGRAM_MAX
                self._transmit_fragments(header, message, rights)
        else:
            self.socket.sendmsg([WHOLE_COOKIE, message], rights, socket.MSG_DONTWAIT)

    def _transmit_fragments(
        self, header: bytes, data: bytes, rights: Sequence[tuple[int, int, array.array[int]]]
    ) -> None:
        total, number, sendmsg = len(header) + len(data), self.socket.fileno(), self.socket.sendmsg
        for buffers, end in fragments(
            header, data, self._cookie, self._own_pid, number, self._sent_bytes, self._longest
        ):
            sendmsg(buffers, rights if end == total else (), socket.MSG_DONTWAIT)
            self._sent_bytes = end

    def send_queued(self, drops: Drops, timeout: float = 0.0) -> None:
        """Send the queue, head first, until it is empty.

        With a `timeout` in seconds, the first send blocks for that long or a second, whichever is shorter; the head
        must then be a single datagram (see has_datagram_at_head).  A message that the kernel refuses is dropped and
        counted.  Raises BlockingIOError or InterruptedError when the receiver's socket is full, ConnectionError when
        the receiver has closed its socket.
        """
        queue = self.queue
        while queue:
            head = queue.head
            if self._batch is None:
                self._batch = self._new_batch()
            batch, number = self._batch
            waiting, timeout = min(timeout, _LONGEST_BLOCKING_SEND), 0.0
            try:
                if waiting:
                    send_blocking(self.socket, batch or WHOLE_COOKIE + head.message, waiting)
                elif batch:
                    self.socket.sendmsg((batch,), (), socket.MSG_DONTWAIT)
                else:
                    self.transmit(head.start, head.message, head.fds)
            except (BlockingIOError, InterruptedError, ConnectionError):
                raise
            except OSError as error:
                if batch and error.errno in _TOO_LONG:
                    self.reads_batches, self._batch = False, None
                    continue
                detail = f"to {head.dst} of type {type_name(head.type)}: {error.strerror}"
                drops("sending failed", detail, number, about_it=head.about_it)
            self._batch = None
            for _ in range(number):
                queue.pop()
            if self._sent_bytes:
                self.begin_message()

    def _new_batch(self) -> tuple[bytes, int]:
        """A batch of the queue's first messages, and their number; without bytes if the head goes by itself."""
        messages: list[bytes] = []
        if self.reads_batches and len(self.queue) > 1:
            room = BATCH_BYTES
            for queued in self.queue.messages:
                room -= BATCH_ITEM.size + len(queued.message)
                if room < 0 or queued.start or queued.fds:
                    break
                messages.append(queued.message)
        return (pack_batch(messages), len(messages)) if len(messages) > 1 else (b"", 1)

    @property
    def has_datagram_at_head(self) -> bool:
        """Whether the next queued message is a single datagram without descriptors.

        The queue can be empty here: an exception of a signal handler may have come between the last pop() and the
        moment when the destination is no longer counted as blocked.
        """
        queue = self.queue
        return bool(queue) and not queue.head.start and not queue.head.fds

    def replace_socket(self, connected: socket.socket) -> None:
        """Go on with another socket to the same process; the message in flight starts again."""
        self.socket.close()
        self.socket = connected
        self._batch = None
        self.begin_message()


def connect(presence: Presence, pid: int) -> socket.socket | None:
    """A socket connected to the endpoint of `pid`, None if nobody listens there; TransportError if it fails."""
    connected = None
    try:
        connected = unix_socket(socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        connected.connect(f"/proc/self/fd/{presence.socket_dir_fd}/{pid}")
        connected.setblocking(True)  # for send_blocking(); all else says MSG_DONTWAIT
        return connected
    except OSError as error:
        if connected is not None:
            connected.close()
        if error.errno in _NOBODY_LISTENS:
            return None
        raise TransportError(f"connecting to pid {pid}: {error.strerror}") from error
