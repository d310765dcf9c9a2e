# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""asyncio: Unix streams, with a length before each message."""

from __future__ import annotations

import asyncio
import itertools
import struct
import time
from collections.abc import Callable
from pathlib import Path

from msgd.bench.exchange import Load, Tally
from msgd.bench.peers.base import PythonPeer

_LENGTH = struct.Struct("<I")


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(length)


class AsyncioStreams(PythonPeer):
    """StreamReader and StreamWriter on the default event loop."""

    name = "asyncio"
    module = "asyncio"
    note = "Unix streams, 4-byte length prefix"

    def serve(self, directory: Path, ready: Callable[[], None]) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                data = self.answer(await _read(reader))
                writer.write(_LENGTH.pack(len(data)) + data)
                await writer.drain()

        async def listen() -> None:
            server = await asyncio.start_unix_server(echo, directory / "socket")
            ready()
            await server.serve_forever()

        asyncio.run(listen())

    def ping(self, directory: Path, load: Load) -> Tally:
        return asyncio.run(_ping(directory, load))


async def _ping(directory: Path, load: Load) -> Tally:
    reader, writer = await asyncio.open_unix_connection(directory / "socket")
    clock = time.perf_counter
    bursts = itertools.cycle(load.bursts)
    limit = load.window - len(load.bursts[0])
    times: list[float] = []
    sent = received = 0
    began = now = before = clock()
    end = began + load.seconds
    while now < end or received < sent:
        if now < end and sent - received <= limit:
            before = now
            for data in next(bursts):
                writer.write(_LENGTH.pack(len(data)) + data)
                sent += 1
            await writer.drain()
        else:
            await _read(reader)
            received += 1
        now = clock()
        if load.timed and received == sent:
            times.append(now - before)
    elapsed = clock() - began
    writer.close()
    return Tally(sent, received, elapsed, times=times)
