# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The main process and its connection processes: what each survives of the other."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from msgd import GatewayClosed, MessageType, Messaging
from msgd.client import Client
from tests.daemon.gateway.raw import RawClient
from tests.support.daemons import PATIENCE, Place, Running, end_process, one_line
from tests.support.harness import TEXT, Peer, open_fds, send_many

REAL_TIME = signal.SIGRTMIN + 1


@pytest.mark.parametrize(
    ("signum", "name"),
    [
        (signal.SIGKILL, "SIGKILL"),
        (signal.SIGSEGV, "SIGSEGV"),
        (signal.SIGABRT, "SIGABRT"),
        (REAL_TIME, f"signal {REAL_TIME}"),
    ],
)
def test_the_main_process_survives_what_befalls_a_connection_process(place: Place, signum: int, name: str) -> None:
    msgd = place.msgd()
    with RawClient(place) as client, RawClient(place) as other:
        pid = client.pid
        assert other.ask(op="ping")["ok"]
        end_process(pid, signum)
        assert client.is_ended()
        msgd.await_line(f"the connection process {pid} of uid {os.geteuid()} was killed by {name}")
        assert place.number_of_children(msgd.pid) == 1
        assert str(pid) not in place.files()
        assert other.ask(op="ping")["ok"]


def test_a_connection_process_keeps_nothing_of_the_main_process(place: Place) -> None:
    msgd = place.msgd()
    with RawClient(place) as client:
        assert client.ask(op="ping")["ok"]
        fds = {path: path.readlink() for path in Path(f"/proc/{client.pid}/fd").iterdir()}
        assert not any("msgd.pid" in str(target) or f"/{msgd.pid}" in str(target) for target in fds.values())
        parents = {str(path.readlink()) for path in Path(f"/proc/{msgd.pid}/fd").iterdir() if int(path.name) > 2}
        inherited = {opened.partition(" ")[2] for opened in open_fds()}  # from this process, by both
        shared = {str(target) for path, target in fds.items() if int(path.name) > 2} & parents - inherited
        assert not [name for name in shared if name.startswith(("socket:", "pipe:"))]
        status = Path(f"/proc/{client.pid}/status").read_text()
        assert "SigBlk:\t0000000000000000\n" in status


def test_memory_is_taken_from_a_connection_process_first(place: Place) -> None:
    msgd = place.msgd()
    with RawClient(place) as client:
        assert client.ask(op="ping")["ok"]
        main, connection = (int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (msgd.pid, client.pid))
        assert connection == max(main, 500)


def test_connection_processes_outlive_a_killed_main_process(place: Place) -> None:
    msgd = place.msgd()
    with Peer(place.config) as peer, RawClient(place) as client:
        pid = client.pid
        client.ask(op="register", types=TEXT)
        msgd.kill_alone()
        with pytest.raises(GatewayClosed, match=r"is msgd running\?"):
            Client(place.gateway)
        msgd = place.msgd()  # takes the socket over, and counts whom it finds
        assert place.number_of_children(msgd.pid) == 1
        peer.call(send_many, pid, [b"still served"])
        assert client.read()["text"] == "still served"
        with Client(place.gateway) as new:
            new.ping(pid)
            assert place.number_of_children(msgd.pid) == 2
            client.close()
            end_process(pid, signum=None)
            msgd.await_line(f"the connection process {pid} of uid {os.geteuid()}, of an earlier msgd, has ended")
            assert place.number_of_children(msgd.pid) == 1


def test_what_an_earlier_main_process_has_left_is_stopped_too(place: Place) -> None:
    msgd = place.msgd()
    with RawClient(place) as client:
        assert client.ask(op="ping")["ok"]
        msgd.kill_alone()
        msgd = place.msgd()
        msgd.signal(signal.SIGINT)
        assert client.read()["error"] == "stopped"
        client.close()
    assert msgd.wait() == 0
    assert place.files() == set()


def test_connection_processes_outlive_a_terminated_main_process(place: Place) -> None:
    msgd = place.msgd()
    with RawClient(place) as client:
        assert client.ask(op="ping")["ok"]
        msgd.signal(signal.SIGTERM)
        assert msgd.wait() == 0
        assert "1 connection processes go on" in msgd.output
        assert not Path(place.gateway).exists()
        assert client.ask(op="ping")["ok"]


@pytest.mark.parametrize("how", ["SIGINT", "shutdown"])
def test_what_stops_everything(place: Place, how: str) -> None:
    msgd = place.msgd()
    with RawClient(place) as one, RawClient(place) as two:
        assert one.ask(op="ping")["ok"]
        assert two.ask(op="ping")["ok"]
        if how == "SIGINT":
            msgd.signal(signal.SIGINT)
        else:
            place.send(msgd.pid, MessageType.SHUTDOWN)
        for client in (one, two):
            bye = client.read()
            assert (bye["event"], bye["error"]) == ("bye", "stopped")
            assert client.is_ended()
            client.close()
    assert msgd.wait() == 0
    assert place.files() == set()


def test_a_client_that_does_not_go_is_not_waited_for(place: Place) -> None:
    place.configure("log level = 3", "msgd:close timeout = 0.2")
    msgd = place.msgd()
    with RawClient(place) as client:
        assert client.ask(op="ping")["ok"]
        os.kill(client.pid, signal.SIGSTOP)
        msgd.signal(signal.SIGINT)
        assert msgd.wait() == 0


def test_num_children(place: Place) -> None:
    msgd = place.msgd()
    assert place.msgcontrol("msgd", "num-children").stdout == "0 children\n"
    with RawClient(place) as one, RawClient(place) as two:
        pids = one.pid, two.pid
        assert place.msgcontrol("msgd", "num-children").stdout == "2 children\n"
    for pid in pids:
        end_process(pid, signum=None)
    assert place.number_of_children(msgd.pid) == 0


@pytest.mark.parametrize("adopted", [False, True])
def test_who_has_ended_is_no_child_even_if_msgd_has_not_heard_of_it(place: Place, adopted: bool) -> None:
    msgd = place.msgd()
    numbers: list[bytes] = []
    with RawClient(place) as client, Messaging(place.config) as messaging:
        messaging.register(MessageType.SMB_NUM_CHILDREN, lambda message: numbers.append(message.data))
        pid = client.pid
        if adopted:
            msgd.kill_alone()
            msgd = place.msgd()
        assert place.number_of_children(msgd.pid) == 1
        numbers.clear()
        with place.amid_a_dispatch(msgd.pid):
            end_process(pid, signal.SIGKILL)
            messaging.send(msgd.pid, MessageType.SMB_TELL_NUM_CHILDREN)
        messaging.dispatch(PATIENCE)
    assert numbers == [bytes(4)]


def test_a_hangup_reaches_the_connection_processes(place: Place) -> None:
    log = place.directory / "log"
    place.configure("log level = 3", f"log file = {log}")
    msgd = place.daemon()
    with RawClient(place) as client, Messaging(place.config) as messaging:
        pid = client.pid
        log.rename(place.directory / "log.1")
        place.configure("log level = 4", f"log file = {log}")
        place.hangup(msgd)
        answer = messaging.request(pid, MessageType.REQ_DEBUGLEVEL, b"", MessageType.DEBUGLEVEL, PATIENCE)
        assert answer.data == b"all:4 msgd:4\n\0"
        assert f"msgd[{pid}] INFO: reloaded: SIGHUP" in log.read_text()


def test_a_hangup_kills_no_client_that_is_just_connecting(place: Place) -> None:
    msgd = place.msgd()
    place.configure("log level = 0")  # nobody reads what they log
    with ExitStack() as stack:
        clients = []
        for _ in range(50):
            clients.append(stack.enter_context(RawClient(place)))
            place.hangup(msgd.pid)
        for client in clients:
            assert client.ask(op="ping")["ok"]


def connected_to_a_stopped(msgd: Running, place: Place, stack: ExitStack) -> list[RawClient]:
    """More clients than are let in at once: none of them is when the signal comes that ends msgd."""
    msgd.stop()
    return [stack.enter_context(RawClient(place)) for _ in range(40)]


def test_a_client_that_is_just_connecting_gets_the_last_word(place: Place) -> None:
    msgd = place.msgd()
    with ExitStack() as stack:
        clients = connected_to_a_stopped(msgd, place, stack)
        msgd.signal(signal.SIGINT)
        msgd.signal(signal.SIGCONT)
        for client in clients:
            assert client.read()["error"] == "stopped"
            client.close()
    assert msgd.wait() == 0


def test_a_client_that_is_just_connecting_outlives_a_terminated_main_process(place: Place) -> None:
    msgd = place.msgd()
    with ExitStack() as stack:
        clients = connected_to_a_stopped(msgd, place, stack)
        msgd.signal(signal.SIGTERM)
        msgd.signal(signal.SIGCONT)
        assert msgd.wait() == 0
        for client in clients:
            assert client.ask(op="ping")["ok"]
    assert f"{len(clients)} connection processes go on" in msgd.output


def test_no_gateway_if_it_is_set_to_nothing(place: Place) -> None:
    place.configure("log level = 3", "msgd:listen =")
    msgd = place.msgd()
    assert place.files() == {"msgd.pid", str(msgd.pid)}


def test_what_is_not_a_socket_is_left_alone(place: Place) -> None:
    path = place.directory / "precious"
    path.write_text("not yours")
    place.configure("log level = 3", f"msgd:listen = {path}")
    failed = place.run_msgd("-F")
    assert failed.returncode == 1
    assert one_line(failed) == f"msgd: msgd:listen = {path} exists and is not a socket; remove it"
    assert path.read_text() == "not yours"
    assert place.files() == set()


def test_a_socket_on_which_somebody_listens_is_left_alone(place: Place) -> None:
    place.msgd()
    elsewhere = place.directory / "elsewhere.conf"
    elsewhere.write_text(place.smb_conf.read_text().replace("/pid\n", f"/pid2\nmsgd:listen = {place.gateway}\n"))
    failed = place.run("msgd.daemon", "-F", "-s", str(elsewhere))
    assert failed.returncode == 1
    assert "another process listens there" in one_line(failed)
    with Client(place.gateway) as client:
        client.ping()


def test_a_path_that_is_too_long(place: Place) -> None:
    place.configure(f"msgd:listen = /{'x' * 107}")
    for failed in (place.run_msgd("-F"), place.run("msgd.tools.msgparm", "-s", str(place.smb_conf))):
        assert failed.returncode == 1
        assert "AF_UNIX takes at most 107 bytes" in one_line(failed)


def test_only_our_own_socket_is_removed_at_the_end(place: Place) -> None:
    msgd = place.msgd()
    Path(place.gateway).unlink()
    Path(place.gateway).write_text("another's")
    msgd.signal(signal.SIGTERM)
    assert msgd.wait() == 0
    assert Path(place.gateway).read_text() == "another's"
