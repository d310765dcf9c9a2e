# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Nothing blocks the event loop: blockbuster watches each call that a program makes of a context."""

from __future__ import annotations

import asyncio
import contextlib
import os

from blockbuster import blockbuster_ctx

from msgd import Config, Message
from msgd.aio import AsyncMessaging
from tests.backends.conftest import StartPeer
from tests.messaging.test_requests import ANSWER, ASK, echo
from tests.support.harness import PATIENCE, TEXT

ON_TMPFS = ("os.listdir", "os.stat", "os.unlink", "os.mkdir", "os.path.isdir", "os.path.abspath", "os.rename")
"""Calls on the rendezvous directory.  It is on a tmpfs, as /run is, where they take microseconds and never wait."""


def test_nothing_blocks(config: Config, start: StartPeer) -> None:
    peers = [start() for _ in range(2)]
    for peer in peers:
        peer.begin(echo)

    async def main() -> None:
        got: list[bytes] = []

        async def handler(message: Message) -> None:
            await asyncio.sleep(0)
            got.append(message.data)

        async with asyncio.timeout(PATIENCE), AsyncMessaging(config) as messaging:
            messaging.register(TEXT, handler)
            for number in range(100):
                await messaging.send(messaging.server_id, TEXT, b"%d" % number)
            await messaging.send_all(TEXT, b"all")
            await messaging.request(peers[0].server_id, ASK, b"x" * 100_000, ANSWER)
            assert len((await messaging.survey(ASK, b"?", ANSWER)).answers) == 2
            await messaging.add_name("here")
            assert await messaging.lookup("here")
            await messaging.processes()
            await messaging.remove_name("here")
            while len(got) < 100:
                await asyncio.sleep(0)
            watching = asyncio.create_task(messaging.watch(peers[0].pid))
            await asyncio.sleep(0)
            os.kill(peers[0].pid, 9)
            await watching

    with blockbuster_ctx() as blockbuster:
        for name in ON_TMPFS:
            with contextlib.suppress(KeyError):
                blockbuster.functions[name].deactivate()
        # The socket can wait, and MSG_DONTWAIT says not to.
        blockbuster.functions["socket.socket.send"].can_block_in("dgram/backend.py", "send")
        asyncio.run(main())
