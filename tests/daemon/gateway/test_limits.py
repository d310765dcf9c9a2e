# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Bounds: each has a parameter and a last word, and memory keeps within them."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from msgd import QueueFull, ServerID
from tests.daemon.gateway.raw import RawClient
from tests.support.daemons import PATIENCE, Place
from tests.support.harness import TEXT, Peer, Session, drain, send_many, serve
from tests.wire.gateway.test_lines import GARBAGE

GARBAGE_LINES = 10_000


def memory_of(pid: int) -> int:
    """Its resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_ten_thousand_lines_of_garbage(place: Place) -> None:
    """Each line is answered by one object, and the connection lives on in the same process."""
    place.configure("log level = 3", "msgd:max clients = 1")
    msgd = place.msgd()
    sent = 0
    with RawClient(place) as client:
        pid = client.pid

        @settings(
            max_examples=GARBAGE_LINES // 20,
            phases=[Phase.generate],
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(st.lists(GARBAGE.map(lambda line: line.replace(b"\n", b"")), min_size=20, max_size=20))
        def say(lines: list[bytes]) -> None:
            nonlocal sent
            client.write(b"".join(line + b"\n" for line in lines))
            for _ in lines:
                assert client.read()["ok"] in (True, False)
            sent += len(lines)

        say()
        assert sent >= GARBAGE_LINES
        assert client.pid == pid
        assert memory_of(pid) < 100 << 20
    assert place.debuglevel(msgd.pid)


def test_a_line_over_the_limit(place: Place) -> None:
    place.configure("log level = 3", "msgd:client line bytes = 2K")
    place.msgd()
    for line in (b"x" * 2049 + b"\n", b"x" * 100_000):
        with RawClient(place) as client:
            client.write(b'{"op": "ping"}\n' + line)
            assert client.read()["ok"]
            bye = client.read()
            assert (bye["event"], bye["error"]) == ("bye", "line-too-long")
            assert "2048 bytes (msgd:client line bytes)" in bye["message"]
            client.write(b"more of it" * 1000)  # is thrown away, and takes the last word from nobody
            assert client.is_ended()


def test_an_idle_client(place: Place) -> None:
    place.configure("log level = 3", "msgd:client idle timeout = 0.1")
    msgd = place.msgd()
    with RawClient(place) as idle:
        bye = idle.read()
        assert (bye["event"], bye["error"]) == ("bye", "idle")
        assert idle.is_ended()
    msgd.await_line("is disconnected: nothing was said for 0.1 seconds")


def test_idle_for_ever(place: Place) -> None:
    place.configure("log level = 3", "msgd:client idle timeout = 0")
    place.msgd()
    with RawClient(place) as client:
        hello = client.ask(op="hello")
        assert hello["limits"]["idle_seconds"] == 0
        for _ in range(3):  # turns of its loop, in which it would be due
            place.debuglevel(ServerID.parse(hello["server_id"]).pid)
        assert client.ask(op="ping")["ok"]


def test_a_running_connection_obeys_new_bounds(place: Place) -> None:
    msgd = place.msgd()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with RawClient(place) as long_winded, RawClient(place) as idle:
        pid = long_winded.pid
        assert idle.ask(op="ping")["ok"]
        for memory in (100, 200):
            place.configure("log level = 3", "msgd:client line bytes = 2K", f"msgd:client memory = {memory}M")
            os.kill(pid, signal.SIGHUP)
            while resource.prlimit(pid, resource.RLIMIT_DATA) != (memory << 20, hard):
                place.debuglevel(pid)
        assert long_winded.ask(op="hello")["limits"]["line_bytes"] == 2048
        long_winded.write(b"x" * 2049 + b"\n")
        assert long_winded.read()["error"] == "line-too-long"
        place.configure("log level = 3", "msgd:client idle timeout = 0.1")
        msgd.signal(signal.SIGHUP)
        assert idle.read()["error"] == "idle"


def test_a_running_connection_obeys_a_new_stall_timeout(place: Place) -> None:
    place.configure("log level = 3", "msgd:client buffer bytes = 64K", "msgd:client stall timeout = 1000")
    msgd = place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        pid = client.pid
        client.ask(op="register", types=TEXT)
        peer.begin(fill_and_drain, pid)
        place.configure("log level = 3", "msgd:client buffer bytes = 64K", "msgd:client stall timeout = 0.1")
        os.kill(pid, signal.SIGHUP)
        msgd.await_line("is disconnected: too little was read for 0.1 seconds (msgd:client stall timeout)")


def test_who_waits_for_something_is_not_idle(place: Place) -> None:
    """All of what they say is there before they are let in: nothing depends on how fast that goes."""
    place.configure("log level = 3", "msgd:client idle timeout = 0.1")
    msgd = place.msgd()
    msgd.stop()
    with Peer(place.config) as peer, RawClient(place) as waiting, RawClient(place) as calling:
        waiting.write(lines({"op": "hello"}, {"op": "register", "types": TEXT}))
        call = {"op": "call", "to": str(peer.server_id), "type": TEXT, "answer": TEXT, "timeout": 0.5}
        calling.write(lines(call))
        msgd.signal(signal.SIGCONT)
        pid = int(waiting.read()["server_id"].partition("/")[0])
        assert waiting.read()["ok"]
        assert calling.read()["error"] == "reply-timeout"
        assert calling.read()["error"] == "idle"
        peer.call(send_many, pid, [b"still here"])
        assert waiting.read()["text"] == "still here"


def lines(*objects: dict[str, object]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in objects)


def fill(session: Session, dst: int) -> int:
    """Send until the receiver takes no more; how many were sent."""
    sent = 0
    try:
        while True:
            session.messaging.send(dst, TEXT, b"x" * 1000)
            sent += 1
    except QueueFull:
        return sent


def fill_and_drain(session: Session, dst: int) -> None:
    """Send more than the receiver takes, however fast it reads at first: what waits here goes on leaving."""
    fill(session, dst)
    drain(session.messaging)


def empty(session: Session) -> None:
    drain(session.messaging)


def test_a_client_that_does_not_read_in_time(place: Place) -> None:
    """Its senders are told, its connection process keeps small, and when it reads again nothing is missing."""
    place.configure("log level = 3", "msgd:send queue messages = 10000", "msgd:client buffer bytes = 64K")
    place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        pid = client.pid
        client.ask(op="register", types=TEXT)
        sent = peer.call(fill, pid)
        assert memory_of(pid) < 100 << 20
        peer.begin(empty)
        for _ in range(sent):
            assert len(client.read()["text"]) == 1000
        peer.hear()


def test_a_client_that_does_not_read_its_answers(place: Place) -> None:
    place.configure("log level = 3", "msgd:client buffer bytes = 64K", "msgd:client stall timeout = 0.2")
    msgd = place.msgd()
    with RawClient(place) as client:
        pid = client.pid
        client.socket.setblocking(False)
        try:
            while True:
                client.socket.send(b'{"op": "hello"}\n' * 100)
        except (BlockingIOError, BrokenPipeError):
            pass  # it reads no more of what we say
        assert memory_of(pid) < 100 << 20
        msgd.await_line("is disconnected: too little was read for 0.2 seconds (msgd:client stall timeout)")


def test_a_client_that_reads_again_finds_whole_lines_and_the_last_word(place: Place) -> None:
    bounds = ("msgd:client buffer bytes = 64K", "msgd:client stall timeout = 0.2", "msgd:close timeout = 1000")
    place.configure("log level = 5", *bounds)
    msgd = place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        pid = client.pid
        client.ask(op="register", types=TEXT)
        peer.begin(fill_and_drain, pid)
        msgd.await_line("the last word to")
        while (heard := client.read())["event"] == "message":
            assert heard["text"] == "x" * 1000
        assert (heard["event"], heard["error"]) == ("bye", "not-reading")
        assert client.is_ended()


PING = b'{"op": "ping"}\n'


def ping_until_nothing_is_read(client: RawClient, place: Place, pid: int) -> int:
    """The bytes of pings that were sent."""
    client.socket.setblocking(False)
    sent = 0
    while sent < (16 << 20):
        try:
            sent += client.socket.send((PING * 1000)[sent % len(PING) :])
        except BlockingIOError:
            break
        place.debuglevel(pid)  # it has had its turn
    client.socket.settimeout(PATIENCE)
    return sent


@pytest.mark.parametrize("end", ["room", "hangup"])
def test_who_says_more_while_a_request_of_its_is_held_up(place: Place, end: str) -> None:
    """No more is read than a line may have; what was said is done when there is room, unless the client is gone."""
    bounds = ("msgd:client line bytes = 64K", "msgd:send queue messages = 1", "msgd:close timeout = 0.1")
    place.configure("log level = 3", *bounds)
    msgd = place.msgd()
    with Peer(place.config) as peer, RawClient(place) as client:
        pid, before = client.pid, memory_of(client.pid)
        request = {"op": "send", "to": peer.server_id.pid, "type": TEXT, "text": "x"}
        while client.ask(**request).get("error") != "queue-full":
            pass
        client.say(timeout=PATIENCE, **request)
        sent = ping_until_nothing_is_read(client, place, pid)
        assert memory_of(pid) - before < 4 << 20
        if end == "room":
            peer.begin(serve)
            assert client.read()["op"] == "send"
            for _ in range(sent // len(PING)):
                assert client.read()["op"] == "ping"
        else:
            client.close()
            msgd.await_line("is disconnected")


def test_runaway_memory_is_the_end_of_one_process_only(place: Place) -> None:
    place.configure(
        "log level = 3", "msgd:client memory = 64M", "msgd:client buffer bytes = 1G", "msgd:client line bytes = 1G"
    )
    msgd = place.msgd()
    with RawClient(place) as other, RawClient(place) as client:
        assert other.ask(op="ping")["ok"]
        try:
            for _ in range(200):
                client.write(b"x" * (1 << 20))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it is dead
        bye = client.read()
        assert (bye["event"], bye["error"]) == ("bye", "failed")
        assert "msgd:client memory" in bye["message"]
        msgd.await_line("has used up msgd:client memory")
        msgd.await_line("failed with status 1")
        assert other.ask(op="ping")["ok"]
    with RawClient(place) as client:
        assert client.ask(op="ping")["ok"]


def test_a_message_there_is_no_memory_for(place: Place) -> None:
    place.configure("log level = 3", "msgd:client memory = 64M")
    msgd = place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        pid = client.pid
        client.ask(op="register", types=TEXT)
        peer.begin(send_many, pid, [b"\xff" * (16 << 20)])
        bye = client.read()
        assert (bye["event"], bye["error"]) == ("bye", "failed")
        assert "msgd:client memory" in bye["message"]
    msgd.await_line("msgd:client memory")


def test_a_client_that_reads_a_little_in_time(place: Place) -> None:
    """A client that reads a line now and then holds its backlog in our memory; so that does not count as reading."""
    place.configure("log level = 3", "msgd:client stall timeout = 0.3")
    msgd = place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        pid = client.pid
        client.ask(op="register", types=TEXT)
        peer.begin(send_many, pid, [b"x" * 1000] * 2000)
        end = os.pidfd_open(pid)
        for _ in range(100):
            with contextlib.suppress(BrokenPipeError):
                client.say(op="ping")  # a turn of its loop, in which it sends what has room
            client.read()
            if select.select([end], [], [], 0.05)[0]:  # as slow as this client is
                break
        os.close(end)
        msgd.await_line("is disconnected: too little was read for 0.3 seconds (msgd:client stall timeout)")
