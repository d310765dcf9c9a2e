# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Who may connect, how many of them, and which types they may send."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable

import pytest

from msgd import GatewayClosed, NotAllowed
from msgd.client import Client
from msgd.daemon.main import main
from msgd.messaging import backend_class
from msgd.programs.type_rules import TypeRules
from tests.daemon.gateway.raw import RawClient
from tests.support.daemons import PATIENCE, Place, end_process, one_line
from tests.support.harness import TEXT, Channel, Child, Peer, take_data

NOBODY = 65534
AUDIENCE = 54321
"""A group of nobody's."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")


def as_nobody(
    place: Place, body: Callable[[Channel], object], groups: tuple[int, ...] = (), uid: int = NOBODY
) -> Child:
    """A child of user nobody, or another, that runs `body` and tells what it returned."""
    place.directory.chmod(0o755)

    def run(channel: Channel) -> None:
        os.setgroups(groups)
        os.setgid(NOBODY)
        os.setuid(uid)
        channel.send(body(channel))

    return Child(run)


def connect(place: Place) -> str:
    """What becomes of a client."""
    try:
        with Client(place.gateway) as client:
            client.ping()
            return "served"
    except (NotAllowed, GatewayClosed) as error:
        return f"{type(error).__name__}: {error}"


@needs_root
def test_nobody_is_refused_by_default(place: Place) -> None:
    msgd = place.msgd()
    with as_nobody(place, lambda channel: connect(place)) as child:
        assert "NotAllowed: the gateway has ended the connection (not-allowed): uid 65534 may not" in child.hear()
        msgd.await_line(f"pid {child.pid} of uid {NOBODY} is refused")
    assert place.number_of_children(msgd.pid) == 0


@needs_root
def test_refusals_do_not_flood_the_log(place: Place) -> None:
    msgd = place.msgd()

    def insist(channel: Channel) -> list[str]:
        return [connect(place) for _ in range(200)]

    began = time.monotonic()
    with as_nobody(place, insist) as child:
        assert all("uid 65534 may not" in answer for answer in child.hear())
    msgd.signal(signal.SIGTERM)
    assert msgd.wait() == 0
    lines = re.findall(r"is refused(?: \(and (\d+) more times\))?: uid 65534", msgd.output)
    assert 1 <= len(lines) <= 1 + time.monotonic() - began
    assert sum(1 + int(others or 0) for others in lines) <= 200


@needs_root
def test_attempts_at_a_type_do_not_flood_the_log(place: Place) -> None:
    place.configure("log level = 3", "msgd:allow users = nobody")
    msgd = place.msgd()

    def insist(channel: Channel) -> list[str]:
        with RawClient(place) as client:
            return [client.ask(op="send_all", type="SHUTDOWN")["error"] for _ in range(200)]

    began = time.monotonic()
    with as_nobody(place, insist) as child:
        assert child.hear() == ["not-allowed"] * 200
        msgd.await_line("is disconnected")
    lines = re.findall(f"pid {child.pid} of uid {NOBODY} may not send SHUTDOWN", msgd.output)
    assert 1 <= len(lines) <= 1 + time.monotonic() - began


@needs_root
def test_many_clients_of_a_user_do_not_flood_the_log(place: Place) -> None:
    """The user's connection processes share one pace."""
    place.configure("log level = 3", "msgd:allow users = nobody")
    msgd = place.msgd()

    def insist(channel: Channel) -> int:
        refused = 0
        for _ in range(20):
            with RawClient(place) as client:
                refused += client.ask(op="send_all", type="SHUTDOWN")["error"] == "not-allowed"
        return refused

    began = time.monotonic()
    with as_nobody(place, insist) as child:
        assert child.hear() == 20
    msgd.signal(signal.SIGTERM)
    assert msgd.wait() == 0
    lines = re.findall(f"of uid {NOBODY} may not send SHUTDOWN", msgd.output)
    assert 1 <= len(lines) <= 1 + time.monotonic() - began


@needs_root
def test_many_failures_of_a_users_connections_do_not_flood_the_log(place: Place) -> None:
    place.configure("log level = 3", "msgd:allow users = nobody")
    msgd = place.msgd()
    began, killed = time.monotonic(), 20

    def connect_and_wait(channel: Channel) -> None:
        clients = [RawClient(place) for _ in range(killed)]
        channel.send([client.pid for client in clients])
        channel.recv()

    with as_nobody(place, connect_and_wait) as child:
        for pid in child.hear():
            os.kill(pid, signal.SIGKILL)
        child.kill()
    msgd.signal(signal.SIGTERM)
    assert msgd.wait() == 0
    lines = re.findall(f"of uid {NOBODY} was killed by SIGKILL", msgd.output)
    assert 1 <= len(lines) <= 1 + time.monotonic() - began


@needs_root
@pytest.mark.parametrize(
    ("parameter", "groups"),
    [
        ("msgd:allow users = nobody", ()),
        (f"msgd:allow groups = {NOBODY}", ()),
        (f"msgd:allow groups = {AUDIENCE}", (1, AUDIENCE)),
    ],
)
def test_nobody_is_let_in_by_the_parameter(place: Place, parameter: str, groups: tuple[int, ...]) -> None:
    place.configure("log level = 3", parameter)
    msgd = place.msgd()
    with as_nobody(place, lambda channel: connect(place), groups) as child:
        assert child.hear() == "served"
    msgd.await_line(f"of uid {NOBODY} is connected")


@needs_root
def test_root_and_its_own_user_are_let_in_by_a_daemon_that_is_not_root_s(place: Place) -> None:
    os.chown(place.directory, NOBODY, NOBODY)
    importlib.import_module("daemon")  # now: nobody may not be able to read it
    backend_class(place.config.messaging_type)

    def start(channel: Channel) -> int:
        sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__  # pytest's are no files
        return main(["-D", "-s", str(place.smb_conf), "-l", str(place.directory)])  # the daemon itself tells nothing

    with as_nobody(place, start) as child:
        assert child.hear() == 0
    with as_nobody(place, lambda channel: connect(place)) as child:
        assert child.hear() == "served"
    assert connect(place) == "served"
    with as_nobody(place, lambda channel: connect(place), uid=NOBODY - 1) as child:
        assert f"uid {NOBODY - 1} may not connect" in child.hear()


@needs_root
def test_a_reload_lets_in_and_keeps_out(place: Place) -> None:
    msgd = place.msgd()
    for users, expected in (("nobody", "served"), ("", "NotAllowed")):
        place.configure("log level = 3", f"msgd:allow users = {users}")
        place.hangup(msgd.pid)
        with as_nobody(place, lambda channel: connect(place)) as child:
            assert child.hear().startswith(expected)


@needs_root
def test_a_user_may_send_what_the_parameter_allows(place: Place) -> None:
    place.configure("log level = 3", "msgd:allow users = nobody")
    msgd = place.msgd()

    def try_all(channel: Channel) -> list[str]:
        said = []
        with RawClient(place) as client:
            for message_type in ("DEBUG", "SHUTDOWN", "PING"):
                for request in ({"op": "send", "to": msgd.pid}, {"op": "send_all"}):
                    said.append(client.ask(type=message_type, **request).get("error", "allowed"))
            said.append(client.ask(op="call", to=msgd.pid, type="SHUTDOWN", answer="PONG")["error"])
        return said

    with as_nobody(place, try_all) as child:
        assert child.hear() == ["not-allowed"] * 4 + ["allowed"] * 2 + ["not-allowed"]
    place.configure("log level = 3", "msgd:allow users = nobody", "msgd:allow types = DEBUG")
    place.hangup(msgd.pid)
    with as_nobody(place, try_all) as child:
        assert child.hear() == ["allowed"] * 2 + ["not-allowed"] * 5


def test_root_may_send_everything(place: Place) -> None:
    place.configure("log level = 3", "msgd:allow types = -all")
    place.msgd()
    with RawClient(place) as client, Peer(place.config) as peer:
        assert client.ask(op="send", to=str(peer.server_id), type=TEXT, text="x")["ok"] is (os.geteuid() == 0)
        if os.geteuid() == 0:
            assert peer.call(take_data, 1) == [b"x"]


def test_no_more_clients_than_may_be(place: Place) -> None:
    place.configure("log level = 3", "max connections = 2")
    msgd = place.msgd()
    with RawClient(place) as one, RawClient(place) as two:
        pids = one.pid, two.pid
        with RawClient(place) as three:
            three.say(op="ping")  # into the open connection of a client that is not let in
            bye = three.read()
            assert (bye["event"], bye["error"]) == ("bye", "too-many")
            assert three.is_ended()
        msgd.await_line("2 clients are connected (msgd:max clients)")
    for pid in pids:
        end_process(pid, signum=None)  # not when it says so: it ends a moment later
    assert place.number_of_children(msgd.pid) == 0
    with RawClient(place) as four:
        assert four.ask(op="ping")["ok"]


def test_there_is_no_limit_to_clients_if_it_is_0(place: Place) -> None:
    place.configure("log level = 3", "max connections = 0")
    place.msgd()
    with RawClient(place) as one, RawClient(place) as two:
        assert one.ask(op="ping")["ok"]
        assert two.ask(op="ping")["ok"]


@needs_root
def test_no_more_clients_of_a_user_than_may_be(place: Place) -> None:
    place.configure("log level = 3", "msgd:allow users = nobody", "msgd:max clients per user = 1")
    place.msgd()

    def try_two(channel: Channel) -> str:
        with Client(place.gateway):
            return connect(place)

    with as_nobody(place, try_two) as child:
        assert "(too-many): 1 clients of uid 65534" in child.hear()
    with Client(place.gateway), Client(place.gateway) as client:  # root is not held to it
        client.ping()


@needs_root
def test_the_bound_of_a_user_holds_over_a_restart(place: Place) -> None:
    place.configure("log level = 3", "msgd:allow users = nobody", "msgd:max clients per user = 1")
    msgd = place.msgd()

    def stay(channel: Channel) -> None:
        with Client(place.gateway) as client:
            channel.send(client.server_id.pid)
            channel.recv()

    with as_nobody(place, stay) as child:
        pid = child.hear()
        msgd.kill_alone()
        msgd = place.msgd()
        with as_nobody(place, lambda channel: connect(place)) as other:
            assert "(too-many): 1 clients of uid 65534" in other.hear()
        child.tell("go")
        end_process(pid, signum=None)
        assert place.number_of_children(msgd.pid) == 0
        with as_nobody(place, lambda channel: connect(place)) as other:
            assert other.hear() == "served"


@pytest.mark.parametrize(
    ("rules", "allowed", "refused"),
    [
        ("", (), (0, 1, 0xFFFFFFFF)),
        ("all -DEBUG -SHUTDOWN", (0, 2, 0xFFFFFFFF), (1, 13)),
        ("ping 0xF000-0xF0FF -61441", (2, 0xF000, 0xF0FF), (1, 3, 0xF001, 0xF100)),
        ("-all ALL", (1,), ()),
        ("all -1-4294967295 7", (0, 7), (1, 8)),
    ],
)
def test_later_rules_overrule_earlier_ones(rules: str, allowed: tuple[int, ...], refused: tuple[int, ...]) -> None:
    read = TypeRules(rules.split())
    assert all(map(read.allow, allowed))
    assert not any(map(read.allow, refused))


def test_a_type_that_is_none_is_a_line_at_the_start_and_in_msgparm(place: Place) -> None:
    place.configure("msgd:allow types = all -PANG")
    for failed in (place.run_msgd("-F"), place.run("msgd.tools.msgparm", "-s", str(place.smb_conf))):
        assert failed.returncode == 1
        assert "msgd:allow types: 'PANG' is not a message type's name" in one_line(failed)


def test_a_reload_with_a_type_that_is_none_keeps_the_rules(place: Place) -> None:
    msgd = place.msgd()
    place.configure("log level = 3", "msgd:allow types = PANG")
    place.hangup(msgd.pid)
    msgd.await_line("'PANG' is not a message type's name")
    msgd.await_line("the settings stay as they were")


def test_a_connection_that_nobody_accepts_is_an_error_with_a_hint(place: Place) -> None:
    with pytest.raises(GatewayClosed, match=r"is msgd running\?"):
        Client(place.gateway, timeout=PATIENCE)
