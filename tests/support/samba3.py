# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A stand-in for a process of Samba 3.0: it does to messages.tdb and connections.tdb what Samba 3.0 does.

    python -m tests.support.samba3 DIRECTORY [serve | silent | ping PID | debuglevel PID | all TYPE TEXT]

It knows nothing of msgd.  It opens both files without the lock of a lock file, appends to PID/<pid> under the lock of
the chain and sends SIGUSR1, takes all messages and stores an empty record, and finds by traversal who listens.  It
skips a record of another version than 1, and says so.
"""

from __future__ import annotations

import os
import signal
import struct
import sys

import tdb

RECORD = struct.Struct("=iiiiQ")
PING, PONG, DEBUG, REQ_DEBUGLEVEL, DEBUGLEVEL = 2, 3, 1, 5, 6
VERSION = 1


def say(line: str) -> None:
    """Tell the test."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Samba3:
    """One process."""

    def __init__(self, directory: str, flags: int = 0x1 | 0x2) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, lambda *_: None)
        open_flags = os.O_RDWR | os.O_CREAT
        self.messages = tdb.Tdb(f"{directory}/messages.tdb", 0, tdb.CLEAR_IF_FIRST, open_flags, 0o600)
        self.connections = tdb.Tdb(f"{directory}/connections.tdb", 0, tdb.CLEAR_IF_FIRST, open_flags, 0o644)
        self.level = b"3"
        if flags:
            self._claim_connection(flags)

    def _claim_connection(self, flags: int) -> None:
        """Announce which broadcasts it listens to, under a key that today's libtdb would not find by name."""
        pid = os.getpid()
        value = bytearray(576)
        struct.pack_into("=Iii", value, 0, 0x280267, pid, -1)
        struct.pack_into("=I", value, 568, flags)
        self.connections.store(struct.pack("=ii256x", pid, -1), bytes(value))

    def send(self, pid: int, kind: int, data: bytes) -> None:
        """Append and signal, whatever the process is."""
        self.messages.append(b"PID/%d\0" % pid, RECORD.pack(VERSION, kind, pid, os.getpid(), len(data)) + data)
        os.kill(pid, signal.SIGUSR1)

    def send_all(self, kind: int, data: bytes) -> int:
        """Send to everybody who listens to GENERAL, this process too; the number of processes."""
        sent = 0
        for key in list(self.connections.keys()):
            value = self.connections.get(key)
            assert value is not None
            _, pid, number = struct.unpack_from("=Iii", value)
            (flags,) = struct.unpack_from("=I", value, 568)
            if len(value) == 576 and number == -1 and flags & 0x1 and os.path.exists(f"/proc/{pid}"):
                self.send(pid, kind, data)
                sent += 1
        return sent

    def take(self) -> list[tuple[int, int, bytes]]:
        """Wait for SIGUSR1 and take what has come: type, source and data of each message."""
        signal.sigwait({signal.SIGUSR1})
        key = b"PID/%d\0" % os.getpid()
        self.messages.lock_all()
        try:
            value = self.messages.get(key) or b""
            self.messages.store(key, b"")
        finally:
            self.messages.unlock_all()
        return list(self._split(value))

    def _split(self, value: bytes) -> list[tuple[int, int, bytes]]:
        found, start = [], 0
        while start + RECORD.size <= len(value):
            version, kind, dst, src, length = RECORD.unpack_from(value, start)
            start += RECORD.size + length
            if version != VERSION or dst != os.getpid():
                say(f"message version {version} received (expected {VERSION})")
            else:
                found.append((kind, src, value[start - length : start]))
        return found

    def serve(self) -> None:
        """Answer for ever."""
        while True:
            for kind, src, data in self.take():
                say(f"type {kind} from {src}: {data!r}")
                if kind == PING:
                    self.send(src, PONG, data)
                elif kind == DEBUG:
                    self.level = data.rstrip(b"\0")
                elif kind == REQ_DEBUGLEVEL:
                    self.send(src, DEBUGLEVEL, b"all:" + self.level + b"\n\0")


def main() -> None:
    directory, what, *arguments = sys.argv[1:]
    process = Samba3(directory, 0 if what in ("ping", "debuglevel") else 0x1 | 0x2)
    say("ready")
    if what == "serve":
        process.serve()
    elif what == "silent":
        signal.pause()
    elif what == "all":
        say(f"sent to {process.send_all(int(arguments[0]), arguments[1].encode())}")
    else:
        process.send(int(arguments[0]), PING if what == "ping" else REQ_DEBUGLEVEL, b"")
        for kind, src, data in process.take():
            say(f"type {kind} from {src}: {data!r}")


if __name__ == "__main__":
    main()
