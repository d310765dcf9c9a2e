# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""What msgd says to a service manager and gets from it; the test is the service manager."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from msgd import MessageType
from tests.daemon.gateway.raw import RawClient
from tests.support.daemons import PATIENCE, Place, Running, end_process

pytest.importorskip("systemd.daemon", reason="systemd-python is not installed")

START = """
import fcntl, os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds]
for fd in set(fds):
    os.close(fd)
for number, copy in enumerate(copies, 3):
    os.dup2(copy, number)
if fds:
    os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Become msgd, with its descriptors from 3 on, and LISTEN_PID for what keeps its pid over exec()."""


class Said(NamedTuple):
    """One notification: its lines by name, and the descriptors that came with it."""

    lines: dict[str, str]
    fds: list[int]


class Manager:
    """A service manager: it hears what its service says, and starts it again with what it was given to keep."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.path = str(place.directory / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(PATIENCE)
        self._socket.bind(self.path)
        self.kept: dict[str, int] = {}

    def start(self, *listening: socket.socket, **environment: str) -> Running:
        """Start msgd with these sockets, and with what it has given to keep."""
        fds = [*(one.fileno() for one in listening), *self.kept.values()]
        names = [*("msgd.socket" for _ in listening), *self.kept]
        environment |= {"NOTIFY_SOCKET": self.path}
        if fds:
            environment = {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(names)} | environment
        msgd = [sys.executable, "-m", "msgd.daemon", "-F", "-s", str(self.place.smb_conf)]
        start = [sys.executable, "-c", START, ",".join(map(str, fds)), *msgd]
        return self.place.keep(Running(start, environment=environment, pass_fds=fds))

    def hear(self, wanted: str) -> Said:
        """What is said next about this; what else is said before is passed over, but for descriptors to keep."""
        return self.hear_all_until(wanted)[-1]

    def hear_all_until(self, wanted: str) -> list[Said]:
        """All that is said up to what is said about this."""
        heard: list[Said] = []
        while not heard or wanted not in heard[-1].lines:
            text, fds, _, _ = socket.recv_fds(self._socket, 4096, 4)
            said = Said(dict(re.findall("^([A-Z_]+)=(.*)$", text.decode(), re.MULTILINE)), list(fds))
            if "FDSTORE" in said.lines:
                self.kept[said.lines["FDNAME"]] = said.fds[0]
            heard.append(said)
        return heard

    def let_go(self) -> None:
        """After a stop: close what was kept."""
        while self.kept:
            os.close(self.kept.popitem()[1])

    def close(self) -> None:
        self.let_go()
        self._socket.close()


@pytest.fixture
def manager(place: Place) -> Iterator[Manager]:
    manager = Manager(place)
    yield manager
    manager.close()


def listen_at(path: str) -> socket.socket:
    """A listening socket as msgd.socket makes it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(path)
    listening.listen()
    return listening


def test_it_says_that_it_is_ready_reloads_and_stops(place: Place, manager: Manager) -> None:
    msgd = manager.start()
    ready = manager.hear("READY").lines
    assert re.fullmatch(rf"0 clients; {msgd.pid}/\d+ in {place.config.lock_directory}", ready["STATUS"])
    assert place.debuglevel(msgd.pid)
    msgd.signal(signal.SIGHUP)
    assert int(manager.hear("RELOADING").lines["MONOTONIC_USEC"]) > 0
    manager.hear("READY")
    place.send(msgd.pid, MessageType.SMB_CONF_UPDATED)
    manager.hear("RELOADING")
    manager.hear("READY")
    with RawClient(place) as client:
        assert client.ask(op="ping")["ok"]
        assert manager.hear("STATUS").lines["STATUS"].startswith("1 client; ")
    assert manager.hear("STATUS").lines["STATUS"].startswith("0 clients; ")
    msgd.signal(signal.SIGTERM)
    manager.hear("STOPPING")
    assert msgd.wait() == 0


def test_it_gives_signs_of_life_as_long_as_its_loop_turns(manager: Manager) -> None:
    msgd = manager.start(WATCHDOG_USEC="200000")
    for _ in range(3):
        manager.hear("WATCHDOG")
    msgd.signal(signal.SIGABRT)  # what a watchdog sends that has heard nothing
    assert msgd.wait() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in msgd.output
    assert "in run" in msgd.output


def test_another_process_s_watchdog_is_not_fed(place: Place, manager: Manager) -> None:
    msgd = manager.start(WATCHDOG_USEC="2000", WATCHDOG_PID="1")
    manager.hear("READY")
    for _ in range(20):  # turns of the loop, in which it would be due
        place.debuglevel(msgd.pid)
    msgd.signal(signal.SIGTERM)
    heard = manager.hear_all_until("STOPPING")
    assert not [said for said in heard if "WATCHDOG" in said.lines]
    assert heard[-1].lines == {"STOPPING": "1", "STATUS": ""}
    assert msgd.wait() == 0


def test_it_listens_on_the_socket_it_is_given(place: Place, manager: Manager) -> None:
    with listen_at(place.gateway) as listening, RawClient(place) as client:
        client.say(op="ping")  # before there is a msgd
        msgd = manager.start(listening)
        assert client.read()["ok"]
        manager.hear("READY")
        msgd.signal(signal.SIGTERM)
        assert msgd.wait() == 0
        assert os.path.exists(place.gateway)  # it is the service manager's
        assert "which is used" not in msgd.output


@pytest.mark.parametrize("listen", ["", "/nowhere/msgd.sock"])
def test_the_socket_it_is_given_counts_and_not_the_parameter(place: Place, manager: Manager, listen: str) -> None:
    place.configure("log level = 3", f"msgd:listen = {listen}")
    with listen_at(place.gateway) as listening:
        msgd = manager.start(listening)
        manager.hear("READY")
        with RawClient(place) as client:
            assert client.ask(op="ping")["ok"]
        msgd.signal(signal.SIGTERM)
        assert msgd.wait() == 0
    said = f"msgd:listen is {listen or 'empty'}, but the service manager has passed {place.gateway}, which is used"
    assert msgd.output.count(said) == 1


def test_sockets_it_cannot_use_are_an_error(place: Place, manager: Manager) -> None:
    with listen_at(place.gateway) as one, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as two:
        for sockets in ((one, one), (two,)):
            msgd = manager.start(*sockets)
            assert msgd.wait() == 1
            assert "something other than one AF_UNIX stream socket" in msgd.output


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_connection_processes_outlive_a_restart_and_not_a_stop(
    place: Place, manager: Manager, end: signal.Signals
) -> None:
    with listen_at(place.gateway) as listening:
        msgd = manager.start(listening)
        manager.hear("READY")
        assert list(manager.kept) == ["lifeline"]
        with RawClient(place) as client:
            pid = client.pid
            for _ in range(2):
                msgd.signal(end)
                msgd.wait()
                msgd = manager.start(listening)
                manager.hear("READY")
                assert client.ask(op="ping")["ok"]
                assert place.number_of_children(msgd.pid) == 1
            with RawClient(place) as later:
                assert later.ask(op="ping")["ok"]
                msgd.signal(end)
                msgd.wait()
                assert later.ask(op="ping")["ok"]
                manager.let_go()
                for one in (client, later):
                    bye = one.read()
                    assert (bye["error"], bye["message"]) == ("stopped", "the service is stopped")
                    assert one.is_ended()
                    one.close()
        end_process(pid, signum=None)


def test_a_service_manager_that_keeps_nothing_ends_them_with_the_main_process(place: Place, manager: Manager) -> None:
    msgd = manager.start()
    manager.hear("READY")
    manager.let_go()
    with RawClient(place) as client:
        assert client.ask(op="ping")["ok"]
        msgd.kill_alone()
        assert client.read()["error"] == "stopped"


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"WATCHDOG_USEC": "abc"}, "WATCHDOG_USEC = abc: a number of microseconds is needed"),
        ({"WATCHDOG_USEC": "-1"}, "WATCHDOG_USEC = -1: a number of microseconds is needed"),
        ({"WATCHDOG_USEC": "9" * 5000}, "a number of microseconds is needed"),
        ({"LISTEN_FDS": "7"}, "LISTEN_FDS = 7: the service manager says that it passes descriptors from 3 on"),
        ({"LISTEN_FDS": "many"}, "LISTEN_FDS = many: the service manager says that it passes descriptors from 3 on"),
    ],
)
def test_what_it_is_told_wrongly_is_one_line(
    place: Place, manager: Manager, environment: dict[str, str], complaint: str
) -> None:
    with open(os.devnull) as null:  # what has LISTEN_PID set
        manager.kept["null"] = os.dup(null.fileno())
        msgd = manager.start(**environment)
        assert msgd.wait() == 1
        assert msgd.output.count("\n") == 1
        assert msgd.output.startswith("msgd: ")
        assert complaint in msgd.output
