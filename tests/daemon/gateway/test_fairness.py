# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What several users are promised (docs/gateway.md, "Several users"): one of them cannot take what is the others'."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from msgd import Config, GatewayClosed, MessageType
from msgd.client import Client
from msgd.daemon.gateway.places import kept_for_root, why_no_place
from msgd.daemon.gateway.shares import _equal_share
from msgd.daemon.reloads import BURST
from msgd.programs.type_rules import TypeRules
from tests.daemon.gateway.raw import RawClient
from tests.daemon.gateway.test_access import NOBODY, as_nobody, connect, needs_root
from tests.support.daemons import Place, Running, end_process
from tests.support.harness import TEXT, Channel

SOMEBODY = NOBODY - 1
TWO_USERS = f"msgd:allow users = {NOBODY} {SOMEBODY}"


# What an allowed user may send


def test_what_a_user_may_send_by_default() -> None:
    """Whatever makes other programs do something is root's to send."""
    rules = TypeRules(Config().allow_types)
    assert {one for one in MessageType if rules.allow(one)} == {MessageType.PING, MessageType.REQ_DEBUGLEVEL}
    assert rules.allow(0xF000)
    assert rules.allow(0xFFFFFFFF)
    assert not rules.allow(0xEFFF)


@needs_root
def test_a_user_cannot_make_everybody_reload(place: Place) -> None:
    place.configure("log level = 3", TWO_USERS)
    msgd = place.msgd()

    def attempt(channel: Channel) -> list[str]:
        with RawClient(place) as client:
            return [
                client.ask(op="send_all", type="SMB_CONF_UPDATED")["error"],
                client.ask(op="send", to=msgd.pid, type="SMB_CONF_UPDATED")["error"],
                client.ask(op="ping", to=msgd.pid).get("error", "answered"),
            ]

    with as_nobody(place, attempt) as child:
        assert child.hear() == ["not-allowed", "not-allowed", "answered"]
    place.debuglevel(msgd.pid)
    assert "reloaded" not in msgd.output


# Reloads


@pytest.mark.parametrize("how", ["message", "signal"])
def test_reloads_are_paced_and_the_last_change_counts(place: Place, how: str) -> None:
    msgd = place.msgd()
    began = time.monotonic()
    for number in range(100):
        if number == 99:
            place.configure("log level = 3 msgd:7")
        if how == "message":
            place.send(msgd.pid, MessageType.SMB_CONF_UPDATED)
        else:
            place.hangup(msgd.pid)
    while place.debuglevel(msgd.pid) != b"all:3 msgd:7\n\0":
        msgd.await_line("reloaded")
    most = BURST + 1 + (time.monotonic() - began)
    msgd.signal(signal.SIGTERM)
    assert msgd.wait() == 0
    assert BURST <= msgd.output.count("reloaded") <= most


# Connects


@needs_root
@pytest.mark.parametrize("uid", [0, SOMEBODY])
def test_a_crowd_of_one_user_does_not_hold_up_another(place: Place, uid: int) -> None:
    """It is there first, and all of it; but its processes start a few at a time."""
    place.configure("log level = 3", TWO_USERS)
    msgd = place.msgd()
    msgd.stop()

    def crowd(channel: Channel) -> None:
        with ExitStack() as stack:
            clients = [stack.enter_context(RawClient(place)) for _ in range(30)]
            channel.send("all are there")
            channel.recv()
            channel.send([client.ask(op="ping")["ok"] for client in clients])

    def one(channel: Channel) -> bool:
        with RawClient(place) as client:
            client.say(op="ping")
            channel.send("it is there")
            return bool(client.read()["ok"])

    with as_nobody(place, crowd) as child:
        child.hear()
        with as_nobody(place, one, uid=uid) as other:
            other.hear()
            msgd.signal(signal.SIGCONT)
            msgd.await_line(f"pid {other.pid} of uid {uid} is connected")
            assert msgd.output.count(f"of uid {NOBODY} is connected") <= 15
            assert other.hear()
        child.tell("go")
        assert child.hear() == [True] * 30


@needs_root
def test_who_has_gone_before_its_turn_costs_no_process(place: Place) -> None:
    """Unless it has said something, which is done all the same."""
    place.configure("log level = 3", TWO_USERS)
    msgd = place.msgd()
    msgd.stop()

    def come_and_go(channel: Channel) -> None:
        for number in range(100):
            with RawClient(place) as client:
                if number in (50, 51):
                    client.say(op="send", to=msgd.pid, type=TEXT)

    with as_nobody(place, come_and_go) as child:
        child.hear()
        msgd.signal(signal.SIGCONT)
    for _ in range(2):
        msgd.await_line("is disconnected")
    while place.number_of_children(msgd.pid):
        pass  # they have said goodbye, and are about to end
    msgd.signal(signal.SIGTERM)
    assert msgd.wait() == 0
    assert msgd.output.count("is connected") == 2
    assert msgd.output.count("of a type without handler") >= 1


# Places


@needs_root
def test_two_users_leave_places_for_others_and_for_root(place: Place) -> None:
    place.configure("log level = 3", TWO_USERS + f" {SOMEBODY - 1}", "msgd:max clients = 16")
    place.msgd()

    def hold(channel: Channel) -> None:
        with ExitStack() as stack:
            clients = []
            with contextlib.suppress(GatewayClosed):
                while True:
                    clients.append(stack.enter_context(Client(place.gateway)))
            channel.send(len(clients))
            channel.recv()

    with as_nobody(place, hold) as greedy, ExitStack() as stack:
        assert greedy.hear() == 12
        assert stack.enter_context(as_nobody(place, hold, uid=SOMEBODY)).hear() == 3
        with as_nobody(place, lambda channel: connect(place), uid=SOMEBODY - 1) as third:
            assert "the other places are root's" in third.hear()
        assert connect(place) == "served"


@pytest.mark.parametrize(
    ("places", "taken", "uid", "refusal"),
    [
        (16, {1: 11}, 1, None),
        (16, {1: 12}, 1, "the last places are kept for users with fewer than 4"),
        (16, {1: 12}, 2, None),
        (16, {1: 12, 2: 3}, 3, "15 clients are connected, and the other places are root's"),
        (16, {1: 12, 2: 3}, 0, None),
        (16, {1: 12, 2: 3, 0: 1}, 0, "16 clients are connected"),
        (512, {1: 32}, 1, "32 clients of uid 1"),
        (512, dict.fromkeys(range(1, 12), 32), 12, None),
        (512, {**dict.fromkeys(range(1, 12), 32), 12: 8}, 12, "the last places are kept"),
        (512, {**dict.fromkeys(range(1, 12), 32), 12: 8}, 13, None),
        (0, dict.fromkeys(range(1, 1000), 31), 1, None),
        (1, {}, 1, None),
        (2, {1: 1}, 2, "root's"),
    ],
)
def test_who_gets_a_place(places: int, taken: dict[int, int], uid: int, refusal: str | None) -> None:
    config = Config().replace(max_clients=places)
    said = why_no_place(config, uid, taken)
    assert (said is None) if refusal is None else (refusal in str(said))


@pytest.mark.parametrize(("places", "kept"), [(0, 0), (1, 0), (2, 1), (16, 1), (17, 2), (512, 32)])
def test_places_are_kept_for_root(places: int, kept: int) -> None:
    assert kept_for_root(places) == kept


# Memory


def data_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[5]) * os.sysconf("SC_PAGESIZE")


@needs_root
def test_the_clients_of_a_user_share_its_memory(place: Place) -> None:
    place.configure("log level = 3", TWO_USERS, "msgd:user memory = 64M", "msgd:client memory = 1G")
    msgd = place.msgd()

    def come(channel: Channel) -> None:
        with ExitStack() as stack:
            clients = []
            while (asked := channel.recv()) is not None:
                if asked == "come":
                    clients.append(stack.enter_context(Client(place.gateway)))
                    channel.send(clients[-1].server_id.pid)
                else:
                    clients.pop().close()

    with as_nobody(place, come) as child:
        pids = []
        for number in range(1, 5):
            child.tell("come")
            pids.append(child.hear())
            limits = [resource.prlimit(pid, resource.RLIMIT_DATA)[0] - data_of(msgd.pid) for pid in pids]
            assert sum(limits) <= 64 << 20
            assert min(limits) >= (64 << 20) // number - (1 << 20)
        with as_nobody(place, lambda channel: connect(place)) as fifth:
            assert "use up its memory (msgd:user memory)" in fifth.hear()
        with as_nobody(place, lambda channel: connect(place), uid=SOMEBODY) as other:
            assert other.hear() == "served"
        for pid in pids[:0:-1]:
            child.tell("go")
            end_process(pid, None)
        assert place.number_of_children(msgd.pid) <= 2  # the other user's may be ending
        limit = resource.prlimit(pids[0], resource.RLIMIT_DATA)[0] - data_of(msgd.pid)
        assert limit > 60 << 20
        child.tell(None)


@pytest.mark.parametrize(
    ("used", "number", "share"),
    [([], 1, 100), ([0, 0], 2, 50), ([70, 0], 3, 15), ([70, 20, 0], 3, 10), ([60, 60], 3, 0), ([10, 10], 2, 50)],
)
def test_what_is_used_already_is_not_shared(used: list[int], number: int, share: int) -> None:
    assert _equal_share(100, used, number) == share


# Descriptors


@needs_root
@pytest.mark.parametrize("descriptors", [26, 30, 64])
def test_few_descriptors_and_users_who_may_not_connect(place: Place, descriptors: int) -> None:
    place.configure("log level = 3", "msgd:clean-up interval = 0.01")
    place.directory.chmod(0o755)
    command = f'ulimit -n {descriptors}; exec "{sys.executable}" -m msgd.daemon -F -s "{place.smb_conf}"'
    msgd = place.keep(Running(["sh", "-c", command], place.directory))
    msgd.await_line("is ready")
    began = time.monotonic()

    def crowd(channel: Channel) -> list[bool]:
        with ExitStack() as stack:
            clients = [stack.enter_context(RawClient(place)) for _ in range(300)]
            return [client.read()["error"] == "not-allowed" for client in clients]

    with as_nobody(place, crowd) as one, as_nobody(place, crowd) as two:
        assert all(one.hear() + two.hear())
    assert connect(place) == "served"
    for _ in range(3):
        place.hangup(msgd.pid)
    msgd.signal(signal.SIGTERM)
    assert msgd.wait() == 0
    assert "Traceback" not in msgd.output
    most = 1 + (time.monotonic() - began)
    kinds = ("is refused", "clients wait for", "is out of descriptors", "the next clean-up is in")
    for kind in kinds:
        assert msgd.output.count(kind) <= most, "one line a second, of 600 clients"
    others = [line for line in msgd.output.splitlines() if not any(kind in line for kind in kinds)]
    assert len(others) <= 3 + 2 + 2 * 3, "ready, stopping, stopped; connected, disconnected; two processes reload"
