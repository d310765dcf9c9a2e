# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol monitor: show the messages of the processes that allow it, as they come.

Rule 1.  It listens on a socket of its own in the lock directory, which its user and root alone can connect to, and asks
each process by a message.  Processes that start later are asked as well, within a second.
Rule 2.  It never slows down what it watches: what it does not read in time is dropped there, and counted here.
Rule 3.  The socket of a monitor that was killed is removed by the next one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator

from msgd.config import Config
from msgd.errors import MalformedMessage, MsgdError, NoSuchProcess, TransportError
from msgd.messaging import Messaging
from msgd.presence.pidfile import read_pid
from msgd.programs import cli
from msgd.tools.msgcontrol.monitor_output import Output, open_output
from msgd.wire.monitor import PACKET_MAX, SOCKET_PREFIX, Event, Filter
from msgd.wire.refusal import MONITOR
from msgd.wire.server_id import EVERY_TASK, ServerID

PROGRAM = "msgcontrol monitor"

_ASK_INTERVAL = 1.0
"""Seconds between two looks for processes that have not been asked yet."""

_PACKETS_PER_TURN = 256


def run(arguments: argparse.Namespace, config: Config) -> int:
    """Show messages until Ctrl-C, and return the exit status."""
    cli.exit_on_signals()
    if not os.path.isdir(config.lock_directory):
        raise NoSuchProcess(f"{config.lock_directory} does not exist; give the smb.conf in use with -s")
    with (
        open_output(arguments.json, arguments.pcap) as output,
        Messaging(config.replace(close_timeout=0, monitor=False)) as messaging,
        _listener(config) as listener,
    ):
        wanted = Filter(
            frozenset(arguments.type),
            _pids(arguments.sources, messaging),
            _pids(arguments.destinations, messaging),
        )
        with contextlib.suppress(KeyboardInterrupt):
            _Monitor(messaging, listener, wanted, output).run()
    return 0


class _Monitor:
    """Asks processes, and shows what they tell."""

    def __init__(self, messaging: Messaging, listener: socket.socket, wanted: Filter, output: Output) -> None:
        self._messaging = messaging
        self._listener = listener
        self._wanted = wanted.pack()
        self._output = output
        self._asked: set[ServerID] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(messaging.fileno(), selectors.EVENT_READ, lambda: messaging.dispatch())

    def run(self) -> None:
        """Go on until an exception ends it."""
        self._ask()
        if not self._asked:
            sys.stderr.write(f"{PROGRAM}: no process here allows it yet; set msgd:monitor = yes and restart them\n")
        due = time.monotonic() + _ASK_INTERVAL
        while True:
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                key.data()
            self._output.flush()
            if time.monotonic() >= due:
                self._ask()
                due = time.monotonic() + _ASK_INTERVAL

    def _ask(self) -> None:
        """Ask those that have not been asked yet.  Whoever cannot be asked now is asked the next time."""
        for process in self._messaging.processes():
            whole = ServerID(process.pid, EVERY_TASK, unique_id=process.unique_id)
            if process.is_monitored and whole not in self._asked:
                with contextlib.suppress(MsgdError):
                    self._messaging.send(whole, MONITOR, self._wanted)
                    self._asked.add(whole)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has gone again
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(connection))

    def _read(self, connection: socket.socket) -> None:
        for _ in range(_PACKETS_PER_TURN):
            try:
                packet = connection.recv(PACKET_MAX)
            except BlockingIOError:
                return
            except ConnectionError:
                packet = b""
            if not packet:
                self._selector.unregister(connection)
                connection.close()
                return
            with contextlib.suppress(MalformedMessage):
                event = Event.unpack(packet)
                if event.dropped:
                    sys.stderr.write(f"{PROGRAM}: {event.dropped} messages came too fast to be shown\n")
                self._output.show(event)


@contextlib.contextmanager
def _listener(config: Config) -> Iterator[socket.socket]:
    """A listening socket in the lock directory (Rule 1).  Raises TransportError."""
    directory = os.open(config.lock_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    name = f"{SOCKET_PREFIX}{os.getpid()}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as listener:
            try:
                _remove_stale(directory)
                listener.bind(f"/proc/self/fd/{directory}/{name}")
                os.chmod(name, 0o600, dir_fd=directory)
            except OSError as error:
                raise TransportError(f"{config.lock_directory}/{name}: {error.strerror}") from error
            listener.listen(128)
            try:
                yield listener
            finally:
                _unlink(name, directory)
    finally:
        os.close(directory)


def _remove_stale(directory: int) -> None:
    """Remove the sockets of monitors that have ended, and one that has had our pid."""
    for name in os.listdir(f"/proc/self/fd/{directory}"):
        pid = name.removeprefix(SOCKET_PREFIX)
        if name != pid and pid.isdigit() and (int(pid) == os.getpid() or not os.path.exists(f"/proc/{pid}")):
            _unlink(name, directory)


def _unlink(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _pids(text: str | None, messaging: Messaging) -> frozenset[int]:
    """The pids that a process's pid, server id or name stands for.  Raises NoSuchProcess."""
    if text is None:
        return frozenset()
    if re.match("[0-9]", text):
        with contextlib.suppress(ValueError):
            return frozenset((ServerID.parse(text).pid,))
    find: tuple[Callable[[], list[int]], ...] = (
        lambda: [pid for pid in [read_pid(messaging.config.pid_directory, text)] if pid is not None],
        lambda: [server_id.pid for server_id in messaging.lookup(text)],
    )
    for pids in find:
        if found := pids():
            return frozenset(found)
    raise NoSuchProcess(f"no process {text}: give a pid, or a name that msgstatus shows")
