# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Samba's own Python binding (python3-samba) and msgd: ping, names, task ids, long messages, registered types.

Its processes are Samba's: they hear the types that they have registered, below 0xF000, at the tasks that they have.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgd import Config, Message, MessageType, Messaging
from tests.interop.samba import Samba
from tests.support.harness import PATIENCE, Peer, dispatch_until, serve

PYTHON = "/usr/bin/python3"

PROGRAM = """
import select, sys
from samba import param
from samba.dcerpc import server_id
from samba.messaging import Messaging
lp = param.LoadParm()
lp.load(sys.argv[1])
messaging = Messaging((int(sys.argv[2]),), lp_ctx=lp)  # without a task id it would be a client, which hears nothing
def take(context, msg_type, src, data):
    print("got", msg_type, src.pid, len(data), flush=True)
    messaging.send(src, 0x319, data)
messaging.register((take, None), 0x318)
messaging.irpc_add_name(sys.argv[3])
print("ready", messaging.server_id, flush=True)
while True:
    messaging.loop_once(0.05 if len(sys.argv) > 4 else 1.0)  # it sends on what is queued
    if len(sys.argv) > 4 and select.select([0], [], [], 0)[0]:
        pid, msg_type, size = sys.stdin.readline().split()
        dst = server_id.server_id()
        dst.pid, dst.task_id, dst.vnn, dst.unique_id = int(pid), 0, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
        messaging.send(dst, int(msg_type), b"y" * int(size))
        print("sent", flush=True)
"""


class Bound:
    """A process that uses Samba's Python binding."""

    def __init__(self, samba: Samba, name: str, task: int, *, talks: bool = False) -> None:
        command = [PYTHON, "-c", PROGRAM, str(samba.file), str(task), name, *(["talks"] if talks else [])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        assert self.read().startswith("ready ")

    def read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module", autouse=True)
def binding() -> None:
    probe = subprocess.run([PYTHON, "-c", "import samba.messaging"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip("Samba's Python binding is missing: apt-get install python3-samba")


@pytest.fixture(scope="module")
def bound(samba: Samba) -> Iterator[Bound]:
    one = Bound(samba, "bound", 3)
    yield one
    one.end()


@pytest.fixture(scope="module")
def at_task_7(samba: Samba) -> Iterator[Bound]:
    one = Bound(samba, "bound7", 7)
    yield one
    one.end()


def test_ping_and_names(samba: Samba, messaging: Messaging, bound: Bound) -> None:
    (address,) = messaging.lookup("bound")
    assert address.pid == bound.pid
    assert messaging.request(address, MessageType.PING, b"x", MessageType.PONG).src.pid == bound.pid
    assert samba.msgcontrol("bound", "ping")[0] == 0
    assert samba.msgcontrol("BOUND", "ping")[0] == 0


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_registered_type_and_long_messages(messaging: Messaging, bound: Bound, size: int) -> None:
    (address,) = messaging.lookup("bound")
    data = b"z" * size
    answer = messaging.request(address, 0x318, data, 0x319)
    assert answer.data == data
    assert bound.read().startswith("got 792 ")


def test_type_of_ones_own_is_not_heard(messaging: Messaging, bound: Bound) -> None:
    """A fixed type below 0xF000 is what the binding can register; others are for nobody, and do no harm."""
    (address,) = messaging.lookup("bound")
    messaging.send(address, 0xF123, b"nobody hears it")
    assert messaging.request(address, MessageType.PING, b"x", MessageType.PONG).data == b"x"


def test_task_of_a_python_process(samba: Samba, config: Config, at_task_7: Bound) -> None:
    """It is deaf at task 0; msgcontrol finds its task by its name, and so it answers to its pid and to all."""
    with Messaging(config) as messaging:
        (address,) = messaging.lookup("bound7")
        assert (address.pid, address.task_id) == (at_task_7.pid, 7)
        assert messaging.request(address, MessageType.PING, b"x", MessageType.PONG).src.task_id == 7
    pong = f"PONG from pid {at_task_7.pid}.7"
    assert samba.msgcontrol(f"{at_task_7.pid}.7", "ping") == (0, f"{pong}\n")
    assert samba.msgcontrol(at_task_7.pid, "ping") == (0, f"{pong}\n")
    status, output = samba.msgcontrol("all", "ping")
    assert status == 0, output
    assert pong in output.splitlines()


def test_it_sends_to_msgds_process(samba: Samba, config: Config, messaging: Messaging) -> None:
    received: list[Message] = []
    messaging.register(0x318, received.append)
    one = Bound(samba, "talker", 9, talks=True)
    try:
        for size in (0, 5000, 100_000):
            one.say(f"{messaging.server_id.pid} {0x318} {size}")
            dispatch_until(messaging, lambda: received)
            assert received.pop().data == b"y" * size
            assert one.read() == "sent"
    finally:
        one.end()


def test_it_finds_msgds_names(samba: Samba, peer: Peer) -> None:
    peer.call(add_name, "frontend")
    script = (
        "import sys\nfrom samba import param\nfrom samba.messaging import Messaging\n"
        "lp = param.LoadParm(); lp.load(sys.argv[1]); m = Messaging(lp_ctx=lp)\n"
        "print([one.pid for one in m.irpc_servers_byname('frontend')])\n"
    )
    done = subprocess.run([PYTHON, "-c", script, str(samba.file)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == f"[{peer.pid}]\n", done.stderr


def add_name(session: object, name: str) -> None:
    session.messaging.add_name(name)  # type: ignore[attr-defined]


def test_msgd_is_pinged_by_it(samba: Samba, peer: Peer, tmp_path: Path) -> None:
    peer.begin(serve)
    script = (
        "import sys\nfrom samba import param\nfrom samba.messaging import Messaging\n"
        "from samba.dcerpc import server_id\nlp = param.LoadParm()\nlp.load(sys.argv[1])\n"
        "m = Messaging((5,), lp_ctx=lp)\n"
        "got = []\nm.register((lambda context, kind, src, data: got.append((src.pid, data)), None), 3)\n"
        "dst = server_id.server_id(); dst.pid = int(sys.argv[2]); dst.vnn = 0xFFFFFFFF; dst.unique_id = 2**64 - 1\n"
        "m.send(dst, 2, b'hello')\n"
        "while not got:\n    m.loop_once(1.0)\nprint(got)\n"
    )
    command = [PYTHON, "-c", script, str(samba.file), str(peer.pid)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == f"[({peer.pid}, 'hello')]\n", done.stderr
