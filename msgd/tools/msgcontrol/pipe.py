# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Send a message with the end of a pipe, and read what the receiver writes into it, to the end.

smbcontrol passes its own stdout and returns at once, so its text may come after the prompt, or into a closed terminal.
Here the text is there when the command returns.  The pipe's end comes when the receiver has closed its descriptor,
which the kernel also does for a process that ends.
"""

from __future__ import annotations

import os
import select
import time

from msgd.errors import MsgdError, NoSuchProcess
from msgd.messaging import Messaging
from msgd.tools.msgcontrol.command import Command, Request
from msgd.tools.msgcontrol.outcome import Outcome
from msgd.wire.control import unpack_text
from msgd.wire.server_id import ServerID

_READ = 1 << 16


def read_text_of(messaging: Messaging, command: Command, dst: ServerID, request: Request, timeout: float) -> Outcome:
    """Send the request with a pipe; the outcome has the text.  Waits at most `timeout` seconds."""
    deadline = time.monotonic() + timeout
    outcome = Outcome(command, True, messaging.config.lock_directory, timeout)
    reader, writer = os.pipe()
    try:
        try:
            messaging.send(dst, request.type, request.data, fds=[writer])
        except MsgdError as error:
            if isinstance(error, NoSuchProcess) and not messaging.is_alive(dst):
                outcome.gone.append(dst)
            else:
                outcome.failures[dst] = str(error)
            return outcome
        finally:
            os.close(writer)
        data, is_whole = _read_to_end(messaging, reader, deadline)
    finally:
        os.close(reader)
    outcome.text = unpack_text(data.replace(b"\0", b"?"))
    if is_whole:
        outcome.delivered.append(dst)
    else:
        (outcome.late if messaging.is_alive(dst) else outcome.gone).append(dst)
    return outcome


def _read_to_end(messaging: Messaging, reader: int, deadline: float) -> tuple[bytes, bool]:
    """What comes through the pipe until its end or the deadline, and whether the end has come.

    A message that waits here because the receiver's queue is full holds a descriptor of the pipe; dispatch() sends it.
    """
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(messaging.fileno(), select.POLLIN)
    parts: list[bytes] = []
    while True:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            return b"".join(parts), False
        messaging.dispatch()
        if any(fd == reader for fd, _ in ready):
            part = os.read(reader, _READ)
            if not part:
                return b"".join(parts), True
            parts.append(part)
