# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""D-Bus: method calls with dbus-fast, through a dbus-daemon started for the benchmark."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from msgd.bench.exchange import Load, Tally
from msgd.bench.peers.base import PythonPeer
from msgd.bench.results import Outcome
from msgd.bench.workers import RunFailed, Team

_NAME = "org.example.Msgbench"
_PATH = "/"

_CONFIGURATION = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={directory}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
"""A separate bus with its own socket.  It neither reads the configuration of the machine's buses nor uses them."""


class DBus(PythonPeer):
    """Pings with a method call, whose return is the pong.  The bytes are an argument."""

    name = "dbus"
    module = "dbus_fast"
    package = "dbus-fast"
    note = "dbus-fast, method calls through a dbus-daemon"

    def missing(self) -> str:
        return super().missing() or ("" if shutil.which("dbus-daemon") else "dbus-daemon is not installed")

    def run(self, team: Team, directory: Path, load: Load) -> Outcome:
        configuration = directory / "bus.conf"
        configuration.write_text(_CONFIGURATION.format(directory=directory))
        command = ["dbus-daemon", "--nofork", "--nosyslog", "--print-address=1", f"--config-file={configuration}"]
        log = directory / "bus.log"
        with (
            log.open("wb") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, start_new_session=True) as daemon,
        ):
            try:
                assert daemon.stdout is not None
                if not daemon.stdout.readline():
                    raise RunFailed(f"dbus-daemon did not start: {log.read_text(errors='replace').strip()}")
                return self.measure(team, directory, load, (daemon.pid,)).outcome()
            finally:
                daemon.kill()

    def serve(self, directory: Path, ready: Callable[[], None]) -> None:
        import dbus_fast
        import dbus_fast.aio

        def answer(message: dbus_fast.Message) -> dbus_fast.Message | None:
            if message.member != "Ping":
                return None
            return dbus_fast.Message.new_method_return(message, "ay", message.body)

        async def listen() -> None:
            bus = await dbus_fast.aio.MessageBus(_address(directory)).connect()
            bus.add_message_handler(answer)
            await bus.request_name(_NAME)
            ready()
            await bus.wait_for_disconnect()

        asyncio.run(listen())

    def ping(self, directory: Path, load: Load) -> Tally:
        return asyncio.run(_ping(directory, load))


def _address(directory: Path) -> str:
    return f"unix:path={os.fspath(directory)}/bus"


async def _ping(directory: Path, load: Load) -> Tally:
    import dbus_fast
    import dbus_fast.aio

    bus = await dbus_fast.aio.MessageBus(_address(directory)).connect()

    def call(data: bytes) -> asyncio.Task[dbus_fast.Message | None]:
        message = dbus_fast.Message(_NAME, _PATH, _NAME, "Ping", signature="ay", body=[data])
        return asyncio.ensure_future(bus.call(message))

    clock = time.perf_counter
    bursts = itertools.cycle(load.bursts)
    limit = load.window - len(load.bursts[0])
    waiting: deque[asyncio.Task[dbus_fast.Message | None]] = deque()
    sent = received = 0
    began = now = clock()
    end = began + load.seconds
    while now < end or waiting:
        if now < end and len(waiting) <= limit:
            for data in next(bursts):
                waiting.append(call(data))
                sent += 1
        else:
            returned = await waiting.popleft()
            if returned is None or returned.message_type is not dbus_fast.MessageType.METHOD_RETURN:
                break
            received += 1
        now = clock()
    elapsed = clock() - began
    bus.disconnect()
    return Tally(sent, received, elapsed)
