#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Passing open files: the parent opens a file, a child that could not open it writes into it.

build/venv/bin/python examples/passing_descriptors.py
"""

from __future__ import annotations

import os
import tempfile

from msgd import Config, Message, Messaging

OPEN, OPENED, WRITTEN = 0xF001, 0xF002, 0xF003


def write(messaging: Messaging) -> None:
    """The child: ask for a file, write, and say so."""
    messaging.reinit()
    answer = messaging.request(os.getppid(), OPEN, b"report", OPENED)
    (fd,) = answer.take_fds()  # ours now: what nobody takes is closed
    with open(fd, "w") as file:
        file.write("written by the child\n")
    messaging.send(os.getppid(), WRITTEN)
    messaging.close()
    os._exit(0)


def main() -> None:
    """Open the file that the child asks for and pass it on."""
    with tempfile.TemporaryDirectory() as directory:
        config = Config(lock_directory=f"{directory}/run", messaging_type="dgram")
        with Messaging(config) as messaging:
            report, written = f"{directory}/report", []

            @messaging.register(OPEN)
            def pass_file(message: Message) -> None:
                with open(report, "w") as file:
                    messaging.reply(message, OPENED, fds=[file.fileno()])  # duplicated: ours may be closed

            messaging.register(WRITTEN, written.append)
            if os.fork() == 0:
                write(messaging)
            while not written:
                messaging.dispatch(timeout=None)
            os.wait()
            with open(report) as file:
                print(file.read(), end="")


if __name__ == "__main__":
    main()
