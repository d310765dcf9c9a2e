# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""How real Samba and msgd see each other's processes: broadcasts, names and status."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from msgd import Config, Message, MessageType, Messaging, ServerID
from msgd._registry import MESSAGING_MODULES
from tests.interop.samba import Samba, missing
from tests.support.harness import PATIENCE, Child, Peer, Session, dispatch_until, serve

NOTIFY_DAEMON = "notify-daemon"
"""A name that one process of every smbd registers."""
SHARE = "//127.0.0.1/share"


def other_pids(messaging: Messaging) -> set[int]:
    return {process.pid for process in messaging.processes()} - {messaging.server_id.pid}


needs_names_tdb = pytest.mark.skipif(
    all(module.name != "tdb" for module in MESSAGING_MODULES),
    reason="Samba's names are in names.tdb: configure with messaging module tdb",
)


# Broadcasts


def test_broadcast_from_msgd_reaches_every_process(samba: Samba, messaging: Messaging, peer: Peer) -> None:
    """A broadcast reaches Samba's processes, which listen to all classes, and ours; each answers once."""
    peer.begin(serve)
    here = other_pids(messaging)
    assert {samba.pid, peer.pid} < here
    answers: list[int] = []
    messaging.register(MessageType.PONG, lambda message: answers.append(message.src.pid))
    result = messaging.send_all(MessageType.PING, b"who is here?")
    assert (result.delivered, result.failures) == (len(here), {})
    dispatch_until(messaging, lambda: len(answers) >= len(here))
    assert sorted(answers) == sorted(here)


def test_broadcast_from_samba_reaches_every_process(
    samba: Samba, messaging: Messaging, peer: Peer, config: Config
) -> None:
    peer.begin(serve)
    here = other_pids(messaging)
    messaging.close()
    status, output = samba.smbcontrol("-t", "5", "all", "ping")  # smbcontrol always waits until its timeout
    assert status == 0
    answers = sorted(int(pid) for pid in re.findall(r"^PONG from pid (\d+)$", output, re.MULTILINE))
    assert answers == sorted(here)


# Names


def lookup(session: Session, name: str) -> list[ServerID]:
    return session.messaging.lookup(name)


@needs_names_tdb
def test_name_of_a_samba_process(samba: Samba, messaging: Messaging) -> None:
    (notify_daemon,) = messaging.lookup(NOTIFY_DAEMON)
    assert messaging.is_alive(notify_daemon)
    assert messaging.request(notify_daemon, MessageType.PING, b"", MessageType.PONG).src == notify_daemon
    assert messaging.names()[NOTIFY_DAEMON] == [notify_daemon]
    assert samba.msgcontrol(NOTIFY_DAEMON, "ping") == (0, f"PONG from pid {notify_daemon.pid}\n")


def tdbdump(config: Config) -> dict[str, str]:
    """names.tdb as Samba's tool shows it: value by key."""
    path = Path(config.lock_directory, "names.tdb")
    done = subprocess.run(["tdbdump", path], capture_output=True, text=True, timeout=PATIENCE, check=True)
    return dict(re.findall(r'^key\(\d+\) = "(.*)"\ndata\(\d+\) = "(.*)"$', done.stdout, re.MULTILINE))


@needs_names_tdb
def test_format_of_names_tdb(samba: Samba, messaging: Messaging, config: Config) -> None:
    before = tdbdump(config)
    messaging.add_name("printers")
    ours, theirs = str(messaging.server_id), str(messaging.lookup(NOTIFY_DAEMON)[0])
    assert tdbdump(config) == {"printers\\00": f"{ours}\\00", f"{NOTIFY_DAEMON}\\00": f"{theirs}\\00"}
    messaging.remove_name("printers")
    assert tdbdump(config) == before


@needs_names_tdb
def test_clean_up_keeps_the_names_of_samba(samba: Samba, messaging: Messaging, config: Config) -> None:
    messaging.clean_up()  # remove what other tests have left
    (notify_daemon,) = messaging.lookup(NOTIFY_DAEMON)
    with Peer(config) as dead:
        dead.call(add_name, NOTIFY_DAEMON)
        assert messaging.lookup(NOTIFY_DAEMON) == [notify_daemon, dead.server_id]
        dead.kill()
        assert messaging.clean_up() == [dead.pid]
    assert messaging.names() == {NOTIFY_DAEMON: [notify_daemon]}


def add_name(session: Session, name: str) -> None:
    session.messaging.add_name(name)


@pytest.fixture
def later_samba() -> Iterator[Samba]:
    """A Samba that has not been started yet."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="m"))
    yield Samba(directory)
    shutil.rmtree(directory)


@needs_names_tdb
def test_samba_starts_after_msgd(later_samba: Samba) -> None:
    """Samba uses the names.tdb that msgd created.  No process loses a name, not even when Samba ends."""
    with Messaging(later_samba.config()) as messaging:
        messaging.add_name("printers")
        with later_samba:
            (notify_daemon,) = messaging.lookup(NOTIFY_DAEMON)
            assert messaging.names() == {"printers": [messaging.server_id], NOTIFY_DAEMON: [notify_daemon]}
        with Child(lambda channel: channel.recv()):  # the child inherits none of the locks
            messaging.clean_up()
            assert messaging.names() == {"printers": [messaging.server_id]}


# Samba's authentication log


@needs_names_tdb
def test_auth_event(samba: Samba, messaging: Messaging) -> None:
    """A process with the name receives smbd's authentication log as JSON."""
    events: list[dict[str, object]] = []

    def keep(message: Message) -> None:
        events.append(json.loads(message.data.rstrip(b"\0\n")))

    messaging.register(MessageType.AUTH_LOG, keep)
    messaging.add_name("auth_event")
    user = "somebody%wrong"
    status, output = samba.run("smbclient", "-s", samba.file, "-p", samba.port, "-U", user, "-c", "exit", SHARE)
    assert status == 0, output  # an unknown user is a guest
    dispatch_until(messaging, lambda: events)
    assert events[0]["type"] == "Authentication"
    details = events[0]["Authentication"]
    assert isinstance(details, dict)
    assert (details["clientAccount"], details["status"]) == ("somebody", "NT_STATUS_NO_SUCH_USER")
    assert details["localAddress"] == f"ipv4:127.0.0.1:{samba.port}"


# The status


@needs_names_tdb
def test_msgstatus(samba: Samba, peer: Peer) -> None:
    """Samba's processes are listed with ours, each under the title it gives itself."""
    status, output = samba.msgstatus("--json")
    assert status == 0
    rows = {row["pid"]: row for row in json.loads(output)["processes"]}
    with Messaging(samba.config()) as messaging:
        assert rows.keys() == other_pids(messaging)
        assert {row["server_id"] for row in rows.values()} == {
            str(ServerID(one.pid, unique_id=one.unique_id)) for one in messaging.processes() if one.pid != os.getpid()
        }
        (notify_daemon,) = messaging.lookup(NOTIFY_DAEMON)
    assert all((row["state"], row["type"], row["uid"]) == ("alive", "dgram", 0) for row in rows.values())
    assert rows[samba.pid]["command"] == "smbd"
    assert rows[notify_daemon.pid]["names"] == [NOTIFY_DAEMON]
    assert rows[samba.pid]["classes"] == ["GENERAL", "NMBD", "PRINT", "SMBD", "WINBIND"]


@needs_names_tdb
def test_example_that_watches_authentication(samba: Samba) -> None:
    """examples/watch_authentication.py prints the event of an unknown user, and ends after it."""
    command = [sys.executable, "examples/watch_authentication.py", "-s", str(samba.msgd_file), "--events", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
        assert watcher.stderr is not None
        assert watcher.stderr.readline().startswith("listening as ")
        user = "somebody%wrong"
        status, output = samba.run("smbclient", "-s", samba.file, "-p", samba.port, "-U", user, "-c", "exit", SHARE)
        assert status == 0, output
        printed, errors = watcher.communicate(timeout=PATIENCE)
    assert watcher.returncode == 0, errors
    assert json.loads(printed.splitlines()[0])["Authentication"]["clientAccount"] == "somebody"


def test_requests_in_flight_to_smbd(samba: Samba, messaging: Messaging) -> None:
    """smbd answers to the task id that asked: each of many concurrent requests gets its own answer."""
    with ThreadPoolExecutor(8) as pool:
        texts = [b"%d" % number for number in range(8)]
        asked = [pool.submit(messaging.request, samba.pid, "PING", text, timeout=PATIENCE) for text in texts]
        assert [one.result().data for one in asked] == texts
