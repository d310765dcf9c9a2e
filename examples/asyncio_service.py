#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Two asyncio services: one answers questions, the other asks many at a time and reads a stream of news.

build/venv/bin/python examples/asyncio_service.py
"""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile

from msgd import Config, Message, MessageType
from msgd.aio import AsyncMessaging

SQUARE, SQUARED, NEWS = 0xF001, 0xF002, 0xF003


async def serve(config: Config) -> None:
    """Answer SQUARE until SHUTDOWN comes, and tell everybody what has been asked."""
    stopped = asyncio.Event()
    async with AsyncMessaging(config) as messaging:

        async def square(message: Message) -> None:
            await asyncio.sleep(0.01)  # a database, say
            number = int(message.data)
            await messaging.send_all(NEWS, b"somebody has asked for %d" % number)
            await messaging.reply(message, SQUARED, b"%d" % number**2)

        messaging.register(SQUARE, square, concurrency=10)
        messaging.register(MessageType.SHUTDOWN, lambda message: stopped.set())
        await messaging.add_name("squares")
        await stopped.wait()


def run_server(config: Config) -> None:
    """The other process."""
    asyncio.run(serve(config))


async def ask(config: Config) -> None:
    """Find the server by its name, ask twenty things at a time, and read the news of it."""
    async with AsyncMessaging(config) as messaging, messaging.messages(NEWS) as news:
        while not (found := await messaging.lookup("squares")):
            await asyncio.sleep(0.01)
        questions = (messaging.request(found[0], SQUARE, b"%d" % n, SQUARED) for n in range(20))
        answers = await asyncio.gather(*questions)
        print("squares:", *(answer.data.decode() for answer in answers))
        async for message in news:
            print("first news:", message.data.decode())
            break
        ended = asyncio.create_task(messaging.watch(found[0]))
        await asyncio.sleep(0)  # it watches now, so the end cannot come before
        await messaging.send(found[0], MessageType.SHUTDOWN)
        await ended
        print("the server has ended")


def main() -> None:
    """Start the server in another process and ask it."""
    with tempfile.TemporaryDirectory() as directory:
        config = Config(lock_directory=f"{directory}/run", messaging_type="dgram")
        server = multiprocessing.get_context("spawn").Process(target=run_server, args=(config,))
        server.start()
        asyncio.run(ask(config))
        server.join()


if __name__ == "__main__":
    main()
