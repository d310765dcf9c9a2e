# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""page_faults.py DIRECTORY TYPE LENGTH: how many pages a receiver of messages of that length fetches for each.

It is a program of its own, since what malloc returns to the system depends on what a process has done before.
"""

from __future__ import annotations

import os
import resource
import sys

from msgd import Config, Message, Messaging, ServerID

WARM, MEASURED, WINDOW = 60, 300, 20
DATA, DONE = 0xF700, 0xF701
PATIENCE = 30.0


def receive(config: Config, ready: int) -> None:
    """Acknowledge the messages, then write how many pages were fetched for the later ones."""
    faults: list[int] = []
    with Messaging(config) as messaging:

        def acknowledge(message: Message) -> None:
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
            messaging.reply(message, DONE)

        messaging.register(DATA, acknowledge)
        os.write(ready, messaging.server_id.pid.to_bytes(4))
        while len(faults) < WARM + MEASURED:
            if not messaging.dispatch(PATIENCE):
                sys.exit("no message")
    sys.stdout.write(f"{(faults[-1] - faults[WARM]) / MEASURED}\n")


def send(config: Config, pid: int, data: bytes) -> None:
    """Send the messages, with so many of them unacknowledged."""
    acknowledged: list[Message] = []
    with Messaging(config) as messaging:
        messaging.register(DONE, acknowledged.append)
        for number in range(WARM + MEASURED):
            while number - len(acknowledged) >= WINDOW:
                if not messaging.dispatch(PATIENCE):
                    sys.exit("no answer")
            messaging.send(ServerID(pid), DATA, data, timeout=PATIENCE)
        while len(acknowledged) < WARM + MEASURED and messaging.dispatch(PATIENCE):
            pass


def main() -> None:
    """Start the receiver as a child, and send to it."""
    place, messaging_type, length = sys.argv[1:]
    config = Config().replace(
        messaging_type=messaging_type, lock_directory=place, private_dir=place, pid_directory=place,
        socket_directory=os.path.join(place, "msg.sock"),
    )  # fmt: skip
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        receive(config, writing)
        return
    send(config, int.from_bytes(os.read(reading, 4)), bytes(int(length)))
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
