# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What a FrameReader makes of chunks, as the messages that a connection would deliver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgd import Message
from msgd.backends.at_once import do
from msgd.errors import MalformedMessage
from msgd.wire.stream import FrameReader


def feed(reader: FrameReader, chunk: bytes, fds: Sequence[int] = (), *, complete: bool = True) -> Iterator[Message]:
    """Take a chunk, and yield what it completes.  Raises MalformedMessage behind that."""
    do(reader.taken(chunk, fds, complete=complete))
    yield from completed(reader)


def completed(reader: FrameReader) -> Iterator[Message]:
    """Take out what is complete.  Raises MalformedMessage behind that."""
    while reader.ready:
        yield reader.ready.popleft()
    while reader.lost:
        yield reader.lost.popleft()[1]
    if reader.problem:
        raise MalformedMessage(reader.problem)


def receive(reader: FrameReader, fd: int) -> Iterator[Message]:
    """Receive once from a socket by the compiled twin, and yield what that completes.

    Raises what the twin raises, and MalformedMessage.
    """
    care = reader.receiver(fd)()
    if care:
        do(reader.cared(care, lambda: None))
    return completed(reader)
