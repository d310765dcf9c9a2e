# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Clause 11, watch: the kernel reports the end of a process at once, to sync and asyncio programs."""

from __future__ import annotations

import asyncio
import os
import select

import pytest

from msgd import Config, Messaging, NoSuchProcess
from msgd.aio import AsyncMessaging
from tests.backends.conftest import StartPeer
from tests.support.harness import PATIENCE, Peer, close, dead_pid, no_fd_leaks


def has_ended(pidfd: int, timeout: float = 0) -> bool:
    return bool(select.select([pidfd], [], [], timeout)[0])


def test_pidfd(messaging: Messaging, peer: Peer) -> None:
    watched = messaging.watch(peer.server_id)
    assert not has_ended(watched)
    os.kill(peer.pid, 9)
    assert has_ended(watched, PATIENCE)
    os.close(watched)


def test_process_that_is_gone(messaging: Messaging, peer: Peer) -> None:
    stale = peer.server_id._replace(unique_id=peer.server_id.unique_id ^ 1)
    with no_fd_leaks():
        for dst in (dead_pid(), os.getppid(), stale):
            with pytest.raises(NoSuchProcess):
                messaging.watch(dst)
    peer.call(close)
    with no_fd_leaks(), pytest.raises(NoSuchProcess):
        messaging.watch(peer.pid)


def test_awaitable(config: Config, start: StartPeer) -> None:
    """Several tasks watch several processes; each returns when its own process ends."""

    first, second = start(), start()

    async def main() -> None:
        async with AsyncMessaging(config) as messaging:
            watchers = [asyncio.create_task(messaging.watch(one)) for one in (first.pid, first.server_id)]
            other = asyncio.create_task(messaging.watch(second.server_id))
            await asyncio.sleep(0)  # lets the tasks start
            os.kill(first.pid, 9)
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*watchers)
            assert not other.done()
            other.cancel()
            with pytest.raises(asyncio.CancelledError):
                await other

    with no_fd_leaks():
        asyncio.run(main())


def test_awaitable_for_a_process_that_is_gone(config: Config) -> None:
    async def main() -> None:
        async with AsyncMessaging(config) as messaging:
            with pytest.raises(NoSuchProcess):
                await messaging.watch(dead_pid())

    asyncio.run(main())
