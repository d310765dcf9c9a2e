#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A pre-fork service: the parent tells its workers to drop their caches, and each says what it has dropped.

    build/venv/bin/python examples/prefork_service.py [WORKERS]

Each worker has a background dispatcher, as a worker without an event loop has: its own thread goes on with its work.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading

from msgd import Config, Message, MessageType, Messaging

READY, FLUSH, FLUSHED = 0xF001, 0xF002, 0xF003  # from 0xF000 up the numbers are yours


def work(messaging: Messaging) -> None:
    """Be a worker until SHUTDOWN comes."""
    messaging.reinit()  # after fork: an address of its own
    cache = {number: number * number for number in range(os.getpid() % 50)}
    done = threading.Event()

    @messaging.register(FLUSH)
    def flush(message: Message) -> None:
        entries = len(cache)
        cache.clear()
        messaging.reply(message, FLUSHED, b"%d entries" % entries)

    messaging.register(MessageType.SHUTDOWN, lambda message: done.set())
    messaging.start()
    messaging.send(os.getppid(), READY)
    done.wait()  # here a real worker serves its requests
    messaging.close()
    os._exit(0)


def main(workers: int) -> None:
    """Start the workers, ask all of them once, and end them."""
    with tempfile.TemporaryDirectory() as directory, Messaging(Config(lock_directory=f"{directory}/run")) as messaging:
        ready: list[Message] = []
        messaging.register(READY, ready.append)
        for _ in range(workers):
            if os.fork() == 0:
                work(messaging)
        while len(ready) < workers:
            messaging.dispatch(timeout=None)
        flushed = messaging.survey(FLUSH, reply_type=FLUSHED)
        for pid, answer in sorted(flushed.answers.items()):
            print(f"worker {pid} dropped {answer.data.decode()}")
        if flushed.failures:
            print(f"no answer: {dict(flushed.failures)}")
        told = messaging.send_all(MessageType.SHUTDOWN)
        for _ in range(told.delivered):
            os.wait()
        print(f"{told.delivered} workers have ended")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
