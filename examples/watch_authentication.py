#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A watcher of Samba's authentication events: prints each as one line of JSON.

    build/venv/bin/python examples/watch_authentication.py [-s SMB.CONF] [--events N]

Samba sends them to whoever has the name `auth_event`, as type 0x800, where smb.conf says `auth event notification =
yes`.  It runs as root, in Samba's own directories, with the messaging type dgram.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys

from msgd import Config, Message, MessageType, Messaging


def show(message: Message) -> None:
    """Print one event."""
    print(json.dumps(json.loads(message.data.rstrip(b"\0"))), flush=True)


def main() -> int:
    """Print events until so many have come, or for ever."""
    parser = argparse.ArgumentParser(description="Print Samba's authentication events, one JSON object a line.")
    parser.add_argument("-s", "--configfile", metavar="FILE", help="the smb.conf to read")
    parser.add_argument("--events", type=int, default=0, metavar="N", help="end after so many events (default: never)")
    options = parser.parse_args()
    with Messaging(Config.load(options.configfile)) as messaging:
        seen = itertools.count(1)
        enough = False

        @messaging.register(MessageType.AUTH_LOG)
        def take(message: Message) -> None:
            nonlocal enough
            show(message)
            enough = next(seen) == options.events

        messaging.add_name("auth_event")
        print(f"listening as {messaging.server_id}", file=sys.stderr, flush=True)
        while not enough:
            messaging.dispatch(timeout=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
