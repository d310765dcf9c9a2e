# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Fragments of the dgram transport, each as the one piece that it is in the socket, and what a Reassembler does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgd.wire.dgram import DATAGRAM_MAX, Reassembler, fragments
from msgd.wire.header import HEADER_SIZE


def fragment(
    message: bytes, cookie: int, pid: int, socket_number: int, start: int = 0, longest: int = DATAGRAM_MAX
) -> Iterator[bytes]:
    """The datagrams that carry `message`, header and data, from byte `start` on."""
    header, data = message[:HEADER_SIZE], message[HEADER_SIZE:]
    for one in fragments(header, data, cookie, pid, socket_number, start, longest):
        yield b"".join(one.buffers)


def add(
    reassembler: Reassembler, datagram: bytes, credential_pid: int | None, now: float
) -> tuple[bytes, bytes] | None:
    """Add a fragment, and make the changes that this calls for."""
    steps: list[Callable[[], object]] = []
    try:
        return reassembler.add(datagram, credential_pid, now, steps)
    finally:
        for step in steps:
            step()


def expire(reassembler: Reassembler, now: float) -> None:
    """Abandon what is too old, and make the changes that this calls for."""
    steps: list[Callable[[], object]] = []
    reassembler.expire(now, steps)
    for step in steps:
        step()
