# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What Prometheus is told, scraped for real."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from msgd import Config, MessageType
from msgd._registry import MESSAGING_MODULES
from msgd.daemon.metrics.counters import Counters
from tests.daemon.gateway.raw import RawClient
from tests.support.daemons import PATIENCE, TREE, Place, end_process, one_line
from tests.support.harness import TEXT, Child, Peer, take

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")

ACCEPTS, TCP_LISTEN = "00010000", "0A"
"""In /proc/net: the flags of a listening AF_UNIX socket, the state of a listening TCP one."""

BREAK_REQUEST = int(MessageType.SMB_BREAK_REQUEST)


@pytest.fixture
def metered(place: Place) -> Place:
    place.configure("log level = 3", f"msgd:metrics = unix:{place.directory}/metrics")
    return place


def ask(place: Place, request: bytes) -> bytes:
    """What is answered to some bytes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE)
        client.connect(f"{place.directory}/metrics")
        client.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # there was more to read than it wanted to
            while part := client.recv(1 << 16):
                answer += part
        return answer


def scrape(place: Place) -> dict[str, float]:
    """The samples by name and labels."""
    head, _, body = ask(place, b"GET /metrics HTTP/1.0\r\n\r\n").decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.0 200 ")
    assert "Content-Type: text/plain; version=" in head
    return {name: float(value) for name, value in re.findall(r"^([^#\s].*) (\S+)$", body, re.MULTILINE)}


def messages(place: Place, direction: str, kind: str, what: str = "messages") -> str:
    return f'msgd_{what}_total{{backend="{place.config.messaging_type}",direction="{direction}",type_class="{kind}"}}'


def test_messages_of_all_processes_are_counted(metered: Place) -> None:
    msgd = metered.msgd()
    with RawClient(metered) as client, Peer(metered.config) as peer:
        assert client.ask(op="send", to=str(peer.server_id), type=BREAK_REQUEST, text="12345")["ok"]
        assert client.ask(op="send", to=str(peer.server_id), type=TEXT, text="x")["ok"]
        assert client.ask(op="ping", to=msgd.pid, text="1234567890")["ok"]
        peer.call(take, 1)
        samples = scrape(metered)
        assert samples[messages(metered, "out", "smbd")] == 1
        assert samples[messages(metered, "out", "smbd", "message_bytes")] == 5
        assert samples[messages(metered, "out", "general")] == 3  # a text, and PING and PONG
        assert samples[messages(metered, "in", "general")] == 2
        assert samples[messages(metered, "in", "general", "message_bytes")] == 20
        assert samples["msgd_processes"] == 3
        assert samples["msgd_connection_processes"] == 1
        assert samples["msgd_queued_messages"] == samples["msgd_blocked_destinations"] == 0
        # PING's; the PONG is the answer to a request, for which no handler runs.
        assert samples["msgd_handler_seconds_count"] == samples['msgd_handler_seconds_bucket{le="+Inf"}'] == 1
        assert 0 < samples["msgd_handler_seconds_sum"] < 60
        buckets = [value for name, value in samples.items() if name.startswith("msgd_handler_seconds_bucket")]
        assert buckets == sorted(buckets)


def test_a_message_is_counted_once_whatever_the_number_of_its_handlers(metered: Place) -> None:
    metered.msgd()
    with RawClient(metered) as client:
        pid = client.pid
        client.ask(op="register", types=["DEBUGLEVEL", "REQ_DEBUGLEVEL"])
        metered.send(pid, MessageType.REQ_DEBUGLEVEL, b"12345")  # which the connection process answers besides
        assert client.read()["type"] == "REQ_DEBUGLEVEL"
        samples = scrape(metered)
        assert samples[messages(metered, "in", "general")] == 1
        assert samples[messages(metered, "in", "general", "message_bytes")] == 5
        assert samples["msgd_handler_seconds_count"] == 2
        client.ask(op="deregister", types=["DEBUGLEVEL", "REQ_DEBUGLEVEL"])
        metered.send(pid, MessageType.DEBUGLEVEL, b"12345")
        metered.debuglevel(pid)
        client.ask(op="ping")
        samples = scrape(metered)
        assert samples[messages(metered, "in", "general")] == 2
        assert samples["msgd_handler_seconds_count"] == 3
        assert samples['msgd_drops_total{reason="of a type without handler"}'] == 1


def test_nobody_else_may_ask(metered: Place) -> None:
    metered.msgd()
    status = Path(metered.directory, "metrics").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())
    assert stat.S_IMODE(Path(metered.gateway).stat().st_mode) == 0o666


def test_what_an_ended_process_has_counted_still_counts(metered: Place) -> None:
    msgd = metered.msgd()
    with RawClient(metered) as client, Peer(metered.config) as peer:
        pid = client.pid
        assert client.ask(op="send", to=str(peer.server_id), type=TEXT)["ok"]
        end_process(pid, signal.SIGKILL)
        metered.number_of_children(msgd.pid)
        assert scrape(metered)[messages(metered, "out", "general")] >= 1
        assert scrape(metered)["msgd_connection_processes"] == 0


@pytest.mark.parametrize("messaging_type", [module.name for module in MESSAGING_MODULES])
def test_drops_and_queues(metered: Place, messaging_type: str) -> None:
    metered.configure(
        "log level = 3",
        f"msgd:metrics = unix:{metered.directory}/metrics",
        "msgd:send queue messages = 10",
        f"messaging type = {messaging_type}",
    )
    metered.config = Config.load(metered.smb_conf)
    msgd = metered.msgd()
    with RawClient(metered) as client, Peer(metered.config) as peer:
        while client.ask(op="send", to=str(peer.server_id), type=TEXT, text="x" * 500)["ok"]:
            pass
        metered.send(msgd.pid, TEXT)
        metered.debuglevel(msgd.pid)
        samples = scrape(metered)
        assert samples["msgd_queued_messages"] == 10
        assert samples["msgd_blocked_destinations"] == 1
        if messaging_type != "tdb":  # whose file tells of messages alone
            assert samples["msgd_queued_bytes"] >= 5000
        assert samples['msgd_drops_total{reason="of a type without handler"}'] == 1


def test_a_port_of_this_machine(place: Place) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place.configure("log level = 3", f"msgd:metrics = 127.0.0.1:{port}")
    place.msgd()
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with client.makefile() as file:
            assert "msgd_processes 1.0\n" in file.read()
    (place.directory / "other").mkdir()
    other = place.directory / "other.conf"
    other.write_text(place.smb_conf.read_text().replace(f"{place.directory}/", f"{place.directory}/other/"))
    failed = place.run("msgd.daemon", "-F", "-s", str(other))
    assert failed.returncode == 1
    assert f"msgd:metrics: port {port} of 127.0.0.1: " in one_line(failed)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET /elsewhere HTTP/1.0\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.0\r\n\r\n", b"501"),
        (b"GET " + b"x" * 100_000, b"414"),
        (b"\xff\0nonsense\r\n\r\n", b"400"),
    ],
)
def test_other_requests(metered: Place, request_: bytes, answer: bytes) -> None:
    msgd = metered.msgd()
    assert answer in ask(metered, request_)
    assert metered.debuglevel(msgd.pid)


def test_who_asks_for_nothing_keeps_nobody_out(metered: Place) -> None:
    """The oldest of those who say nothing, or half of a request, make room."""
    msgd = metered.msgd()
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) for _ in range(20)]
        for number, client in enumerate(silent):
            client.settimeout(PATIENCE)
            client.connect(f"{metered.directory}/metrics")
            client.sendall(b"GET /metr" if number % 2 else b"")
        for client in silent[:12]:
            assert is_closed(client)
        assert not select.select(silent[12:], [], [], 0)[0], "the last ones are still waited for"
        assert scrape(metered)["msgd_processes"] == 1
        assert is_closed(silent[12])
        assert metered.debuglevel(msgd.pid)
        for client in silent[13:]:  # their time is over
            assert is_closed(client)
    msgd.await_line("a scrape took too long")


def is_closed(client: socket.socket) -> bool:
    """Whether nothing comes before the end of the stream."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:  # what it has said was not read
        return True


def test_every_metric_is_written_up(metered: Place) -> None:
    text = Path(TREE, "docs", "gateway.md").read_text()
    metered.msgd()
    body = ask(metered, b"GET /metrics HTTP/1.0\r\n\r\n").decode()
    families = re.findall("^# TYPE (\\S+) ", body, re.MULTILINE)
    assert families
    for family in families:
        assert f"`{family}`" in text, family


def test_without_prometheus_client(metered: Place) -> None:
    (metered.directory / "prometheus_client.py").write_text("raise ImportError('not here')\n")
    failed = metered.run_msgd("-F")  # its working directory is first on its path
    assert failed.returncode == 1
    assert "install python3-prometheus-client, or leave the parameter empty" in one_line(failed)
    assert metered.files() == set()


def test_it_is_off_by_default(place: Place) -> None:
    msgd = place.msgd()
    assert place.config.metrics == ""
    assert listening_sockets(msgd.pid) == {place.gateway}
    place.configure("log level = 3", f"msgd:metrics = unix:{place.directory}/metrics")
    msgd.signal(signal.SIGTERM)
    assert msgd.wait() == 0
    assert listening_sockets(place.msgd().pid) == {place.gateway, f"{place.directory}/metrics"}


def listening_sockets(pid: int) -> set[str]:
    """The paths at which a process accepts connections, and the ports (in hex, as /proc has them)."""
    inodes = {os.stat(fd).st_ino for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_socket()}
    unix = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    found = {words[7] for words in unix if words[3] == ACCEPTS and int(words[6]) in inodes}
    for file in ("tcp", "tcp6"):
        tcp = [line.split() for line in Path(f"/proc/{pid}/net/{file}").read_text().splitlines()[1:]]
        found |= {words[1] for words in tcp if words[3] == TCP_LISTEN and int(words[9]) in inodes}
    return found


def test_counters_are_read_from_another_process_and_bounded() -> None:
    counters = Counters()
    with Child(lambda channel: count(counters)) as child:
        assert child.wait() == 0
    read = dict(counters.items())
    assert read["one"] == 3
    assert read["set"] == (1 << 64) - 1
    assert len(read) == 255
    assert all(number == 1 for name, number in read.items() if name.startswith("many"))
    counters.close()


def count(counters: Counters) -> None:
    counters.add("one")
    counters.add("one", 2)
    counters.set("set", (1 << 64) - 1)
    for number in range(300):
        counters.add(f"many {number}")
