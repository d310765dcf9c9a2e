# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol monitor shows what real processes send each other, to those who may see it, and slows nobody down."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msgd import Config, Messaging
from msgd._registry import MESSAGING_MODULES
from msgd.errors import MalformedMessage
from msgd.wire.header import MessageDecoder
from msgd.wire.message_types import MessageType
from msgd.wire.monitor import FIRST_BYTES, Event, Filter
from msgd.wire.refusal import MONITOR
from msgd.wire.server_id import ServerID
from tests.support.daemons import ENVIRONMENT, PATIENCE, Place, Running, one_line
from tests.support.harness import TEXT, Peer, open_fds, take_data

KINDS = [module.name for module in MESSAGING_MODULES]


def allowing(place: Place, kind: str = "dgram") -> Config:
    """Let the place's processes be watched."""
    place.configure("log level = 3", f"messaging type = {kind}", "msgd:monitor = yes")
    place.config = Config.load(place.smb_conf)
    return place.config


def watch(place: Place, *arguments: str) -> Running:
    return place.start("msgd.tools.msgcontrol", "-s", str(place.smb_conf), "monitor", *arguments)


@pytest.fixture
def peer(place: Place) -> Iterator[Peer]:
    with Peer(allowing(place)) as peer:
        yield peer


def ready(place: Place, *arguments: str) -> Running:
    """A monitor that watches the only process that allows it."""
    watching = watch(place, *arguments)
    await_connection(place, watching.pid)
    return watching


def await_connection(place: Place, monitor: int) -> None:
    """Wait until somebody has connected to the monitor."""
    path = Path(place.config.lock_directory, f"msg.monitor.{monitor}")
    with Messaging(place.config.replace(monitor=False)) as messaging:
        while not path.exists() or not is_connected(path):
            messaging.dispatch(0.02)


def is_connected(path: Path) -> bool:
    """Whether a connection to the socket was accepted, as the kernel lists it under the path of the listener."""
    listed = Path("/proc/net/unix").read_text()
    return sum(line.split()[-1].endswith(f"/{path.name}") for line in listed.splitlines()) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_messages_both_ways(place: Place, kind: str) -> None:
    """A PING to the daemon and its PONG, each once, though the daemon alone allows it."""
    config = allowing(place, kind)
    msgd = place.msgd()
    watching = ready(place)
    with Messaging(config.replace(monitor=False)) as messaging:
        assert messaging.request(msgd.pid, MessageType.PING, b"hello\0", timeout=PATIENCE).data == b"hello\0"
        own = messaging.server_id.pid
    shown = [watching.await_line("PING"), watching.await_line("PONG")]
    assert re.fullmatch(
        rf"\d\d:\d\d:\d\d\.\d{{6}} {own}\.\d+ -> {msgd.pid} PING 6 bytes: 68 65 6c 6c 6f 00 \|hello\.\|", shown[0]
    )
    assert re.fullmatch(rf"\S+ {msgd.pid} -> {own}\.\d+ PONG 6 bytes: .*", shown[1])
    watching.signal(signal.SIGINT)
    assert watching.wait() == 0
    assert (watching.output.count("PING"), watching.output.count("PONG")) == (1, 1)
    assert not list(Path(config.lock_directory).glob("msg.monitor.*"))


def test_json_filters_and_decoders(place: Place) -> None:
    config = allowing(place)
    msgd = place.msgd()
    watching = ready(place, "--json", "--type", "DEBUG", "--type", "0xf000", "--to", "msgd")
    with Messaging(config.replace(monitor=False)) as messaging:
        messaging.send(msgd.pid, MessageType.PING)
        messaging.send(msgd.pid, MessageType.DEBUG, b"all:3 msgd:4\0")
        shown: dict[str, Any] = json.loads(watching.await_line("{"))
        own = str(messaging.server_id)
    assert shown.pop("time") > 0
    assert shown.pop("to").startswith(str(msgd.pid))
    assert shown == {
        "from": own,
        "seen": "received",
        "type": "DEBUG",
        "number": 1,
        "length": 13,
        "data": b"all:3 msgd:4\0".hex(),
        "dropped": 0,
        "decoded": "all:3 msgd:4",
    }


def test_pcap(place: Place) -> None:
    config = allowing(place)
    msgd = place.msgd()
    file = place.directory / "seen.pcap"
    watching = ready(place, "--pcap", str(file), "--type", "PING")
    with Messaging(config.replace(monitor=False)) as messaging:
        messaging.request(msgd.pid, MessageType.PING, b"x" * 1000, timeout=PATIENCE)
        own = messaging.server_id.pid
    while file.stat().st_size < 24 + 16 + 52 + FIRST_BYTES:
        watching.say("")
    watching.signal(signal.SIGTERM)
    assert watching.wait() == 128 + signal.SIGTERM
    data = file.read_bytes()
    magic, major, minor, _, _, longest, link_type = struct.unpack_from("<IHHiIII", data)
    assert (magic, major, minor, longest, link_type) == (0xA1B2C3D4, 2, 4, 52 + FIRST_BYTES, 147)
    _, _, kept, length = struct.unpack_from("<IIII", data, 24)
    assert (kept, length, len(data)) == (52 + FIRST_BYTES, 1052, 24 + 16 + 52 + FIRST_BYTES)
    message = MessageDecoder().decode(data, 40)
    assert (message.type, message.src.pid, message.dst.pid) == (MessageType.PING, own, msgd.pid)
    assert message.data == b"x" * FIRST_BYTES


def test_it_drops_rather_than_slows_down(place: Place) -> None:
    """A monitor that is stopped holds nobody up; when it goes on, it says how many it has missed."""
    config = allowing(place)
    msgd = place.msgd()
    watching = ready(place, "--type", "PING")
    watching.stop()
    number = 3000
    with Messaging(config.replace(monitor=False)) as messaging:
        for _ in range(number):
            messaging.request(msgd.pid, MessageType.PING, timeout=PATIENCE)
        watching.signal(signal.SIGCONT)
        watching.await_line("PING")
        while "came too fast" not in watching.output:  # it is told with the next message
            messaging.request(msgd.pid, MessageType.PING, timeout=PATIENCE)
            watching.await_line("")
    missed = re.search(r"(\d+) messages came too fast to be shown", watching.output)
    assert missed is not None
    assert 0 < int(missed[1]) < number


def test_nothing_is_left_of_a_monitor_that_has_ended(peer: Peer, place: Place) -> None:
    """The process has its fast path and its descriptors back."""
    with Messaging(place.config) as messaging:
        endpoint = messaging._endpoint
        plain = endpoint.plain_sender
        watching = watch(place)
        while endpoint.monitored is None:
            messaging.dispatch(PATIENCE)
        watched = open_fds()
        assert endpoint.plain_sender is None
        messaging.send(messaging.server_id, TEXT, b"seen")
        messaging.register(TEXT, lambda message: None)
        messaging.dispatch(PATIENCE)
        watching.await_line("0xf")
        watching.signal(signal.SIGKILL)
        watching.wait()
        while endpoint.monitored is not None:  # it notices with the next message
            messaging.send(messaging.server_id, TEXT, b"unseen")
            messaging.dispatch(PATIENCE)
        assert len(watched - open_fds()) == 1
        assert (endpoint.plain_sender, endpoint.observer) == (plain, None)
    assert list(Path(place.config.lock_directory).glob("msg.monitor.*"))
    again = watch(place)
    await_path = Path(place.config.lock_directory, f"msg.monitor.{again.pid}")
    while not await_path.exists():
        peer.call(take_data, 0)
    assert [path.name for path in Path(place.config.lock_directory).glob("msg.monitor.*")] == [await_path.name]


def test_what_goes_to_others_is_seen_where_it_is_sent(place: Place) -> None:
    """Each way to send to a process that tells nothing itself."""
    config = allowing(place)
    with Peer(config.replace(monitor=False)) as other, Messaging(config) as messaging:
        watching = watch(place, "--json", "--to", str(other.pid))
        while messaging._endpoint.monitored is None:
            messaging.dispatch(PATIENCE)
        messaging.send(other.pid, TEXT, b"1")
        messaging.send_all(TEXT, b"2")
        messaging.send_all_many([(TEXT, b"3"), (TEXT, b"4")])
        shown = [json.loads(watching.await_line("{")) for _ in range(4)]
        assert [(one["seen"], bytes.fromhex(one["data"])) for one in shown] == [
            ("sent", b"%d" % n) for n in (1, 2, 3, 4)
        ]


def test_without_the_parameter_nothing_is_shown(place: Place) -> None:
    msgd = place.msgd()
    watching = watch(place)
    watching.await_line("no process here allows it yet; set msgd:monitor = yes")
    with Messaging(place.config) as messaging:
        messaging.send(msgd.pid, MONITOR, Filter().pack())  # asked in spite of that
        messaging.request(msgd.pid, MessageType.PING, timeout=PATIENCE)
    msgd.await_line("of a type without handler")
    watching.signal(signal.SIGINT)
    assert watching.wait() == 0
    assert "PING" not in watching.output


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_another_user_may_not_watch(place: Place) -> None:
    """Even one whose messages are trusted."""
    place.configure("log level = 3", "msgd:monitor = yes", "msgd:trusted users = nobody")
    config = Config.load(place.smb_conf)
    with Messaging(config) as messaging:
        directory = Path(config.lock_directory)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with listener:
            listener.bind(str(directory / f"msg.monitor.{os.getpid()}"))
            os.seteuid(65534)
            try:
                listener.listen()
            finally:
                os.seteuid(0)
            messaging.send(messaging.server_id, MONITOR, Filter().pack())
            messaging.dispatch(PATIENCE)
            assert messaging._endpoint.monitored is None
    place.directory.chmod(0o755)
    command = [sys.executable, "-m", "msgd.tools.msgcontrol", "-s", str(place.smb_conf), "monitor"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, user=65534, group=65534, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("msgcontrol: ")


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--type", "NOTHING"], 2, "NOTHING"),
        (["--json", "--pcap", "x"], 2, "not allowed with argument"),
        (["--pcap", "/nowhere/x"], 1, "/nowhere/x: No such file or directory"),
        (["--from", "nobody"], 1, "no process nobody"),
    ],
)
def test_what_cannot_be(peer: Peer, place: Place, arguments: list[str], status: int, complaint: str) -> None:
    done = place.run("msgd.tools.msgcontrol", "-s", str(place.smb_conf), "monitor", *arguments)
    assert (done.returncode, complaint in one_line(done)) == (status, True)


def test_packets() -> None:
    event = Event(1.5, 3, True, 2, ServerID(1, 2, unique_id=3), ServerID(4, unique_id=5), 1000, b"x" * FIRST_BYTES)
    assert Event.unpack(event.pack()) == event
    with pytest.raises(MalformedMessage):
        Event.unpack(event.pack()[:75])
    wanted = Filter(frozenset((1,)), frozenset((2,)), frozenset())
    assert Filter.unpack(wanted.pack()) == wanted
    for data in (b"", b"[]", b"[1,2,3]", b'[["x"],[],[]]', b"\xff", b"[" * 100_000):
        with pytest.raises(MalformedMessage):
            Filter.unpack(data)
