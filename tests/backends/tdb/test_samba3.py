# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Processes of Samba 3.0 beside msgd's (msgd:samba3): proof, messages both ways, broadcasts, nobody else signalled.

tests/support/samba3.py stands in for Samba 3.0.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from msgd import MessageClass, MessageType, Messaging, NoSuchProcess, QueueFull
from msgd.wire.samba3_connections import Listener, connection_key, pack_connection, unpack_connection
from tests.support.daemons import PATIENCE, Place, Running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root sees which files others have open")

LINES = ("log level = 3", "messaging type = tdb", "msgd:tdb mutexes = no", "msgd:samba3 = yes")


@pytest.fixture
def beside(place: Place) -> Place:
    """A place whose processes accept those of Samba 3.0."""
    place.configure(*LINES)
    place.config = place.config.load(place.smb_conf)
    (place.directory / "lock").mkdir(mode=0o755)
    return place


def samba3(place: Place, *arguments: str, wanted: str = "ready") -> Running:
    """Start the stand-in."""
    command = [sys.executable, "-m", "tests.support.samba3", f"{place.directory}/lock", *arguments]
    running = place.keep(Running(command))
    running.await_line(wanted)
    return running


@pytest.fixture
def messaging(beside: Place) -> Iterator[Messaging]:
    with Messaging(beside.config) as messaging:
        yield messaging


def test_ping_and_debug_go_there_and_back(beside: Place, messaging: Messaging) -> None:
    smbd = samba3(beside, "serve")
    answers: list[tuple[int, int, bytes]] = []
    for kind in (MessageType.PONG, MessageType.DEBUGLEVEL):
        messaging.register(kind, lambda message: answers.append((message.type, message.src.pid, message.data)))
    messaging.send(smbd.pid, MessageType.PING, b"hello\0")
    messaging.send(smbd.pid, MessageType.DEBUG, b"7\0")
    messaging.send(smbd.pid, MessageType.REQ_DEBUGLEVEL)
    while len(answers) < 2:
        assert messaging.dispatch(PATIENCE)
    assert messaging.request(smbd.pid, MessageType.PING, b"again", timeout=PATIENCE).data == b"again"
    assert answers == [(MessageType.PONG, smbd.pid, b"hello\0"), (MessageType.DEBUGLEVEL, smbd.pid, b"all:7\n\0")]


def test_msgcontrol_and_smbcontrol(beside: Place) -> None:
    """msgcontrol's commands on Samba 3.0, Samba 3.0's on msgd."""
    smbd, msgd = samba3(beside, "serve"), beside.msgd()
    assert f"PONG from pid {smbd.pid}" in beside.msgcontrol(str(smbd.pid), "ping").stdout
    assert beside.msgcontrol(str(smbd.pid), "debug", "5").returncode == 0
    assert "all:5" in beside.msgcontrol(str(smbd.pid), "debuglevel").stdout
    samba3(beside, "ping", str(msgd.pid)).await_line(f"type {MessageType.PONG} from {msgd.pid}: b''")
    asking = samba3(beside, "debuglevel", str(msgd.pid))
    asking.await_line(f"type {MessageType.DEBUGLEVEL} from {msgd.pid}: b'all:3 msgd:3\\n\\x00'")
    shown = beside.run("msgd.tools.msgstatus", "-s", str(beside.smb_conf), "--json")
    kinds = {row["pid"]: (row["kind"], row["state"]) for row in json.loads(shown.stdout)["processes"]}
    assert kinds == {smbd.pid: ("samba3", "alive"), msgd.pid: ("msgd", "alive")}


def test_broadcasts_both_ways(beside: Place, messaging: Messaging) -> None:
    smbd = samba3(beside, "serve")
    sent = messaging.send_all(MessageType.DEBUG, b"4\0")
    assert (sent.delivered, sent.failures) == (1, {})
    smbd.await_line(f"type 1 from {messaging.server_id.pid}: b'4\\x00'")
    assert messaging.send_all(0x102, b"").delivered == 0, "it does not listen to what is nmbd's"
    heard: list[bytes] = []
    messaging.register(MessageType.DEBUG, lambda message: heard.append(message.data))
    samba3(beside, "all", "1", "to all", wanted="sent to 3")
    while not heard:
        messaging.dispatch(PATIENCE)
    assert heard == [b"to all"]
    smbd.await_line("b'to all'")


def test_ids_and_long_queues_are_not_for_samba3(beside: Place, messaging: Messaging) -> None:
    """It gets records of version 1 only, in order, however much waits; then the queue is full."""
    smbd = samba3(beside, "serve")
    other = Messaging(beside.config, task_id=7)
    smbd.stop()
    for number in range(300):
        (other if number % 2 else messaging).send(smbd.pid, 0xF000 + number, b"x" * 1000)
    smbd.signal(signal.SIGCONT)
    for number in range(300):
        assert f"type {0xF000 + number} " in smbd.await_line("type ")
    assert "version" not in smbd.output
    other.close()


def test_a_full_queue(beside: Place) -> None:
    config = beside.config.replace(send_queue_messages=5)
    with Messaging(config) as messaging:
        smbd = samba3(beside, "silent")
        for _ in range(5):
            messaging.send(smbd.pid, MessageType.PING)
        with pytest.raises(QueueFull, match="5 messages"):
            messaging.send(smbd.pid, MessageType.PING)


def test_an_end_is_noticed(beside: Place, messaging: Messaging) -> None:
    smbd = samba3(beside, "serve")
    pidfd = messaging.watch(smbd.pid)
    messaging.send(smbd.pid, MessageType.PING)
    smbd.signal(signal.SIGKILL)
    smbd.wait()
    os.close(pidfd)
    with pytest.raises(NoSuchProcess):
        messaging.send(smbd.pid, MessageType.PING)
    assert not messaging.is_alive(smbd.pid)
    messaging.clean_up()
    assert messaging.pending(smbd.pid) == 0


ONLOOKER = """
import sys, tdb, os
file = tdb.Tdb(sys.argv[1] + "/messages.tdb", 0, tdb.CLEAR_IF_FIRST, os.O_RDWR, 0o600)
print("ready", flush=True); sys.stdin.read()
"""
HANDLER = """
import sys, signal
signal.signal(signal.SIGUSR1, lambda *_: print("signalled", flush=True))
print("ready", flush=True); sys.stdin.read()
"""
EXECUTES = """
import os, sys, signal, tdb
signal.signal(signal.SIGUSR1, lambda *_: os.execv("/bin/cat", ["cat"]))
file = tdb.Tdb(sys.argv[1] + "/messages.tdb", 0, tdb.CLEAR_IF_FIRST, os.O_RDWR, 0o600)
for name in os.listdir("/proc/self/fd"):
    try: os.set_inheritable(int(name), True)
    except OSError: pass
print("ready", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("program", [ONLOOKER, HANDLER], ids=["an onlooker", "a handler without the file"])
def test_nobody_innocent_is_signalled(beside: Place, messaging: Messaging, program: str) -> None:
    """Neither a program that looks at the file, nor one that catches SIGUSR1 for something else."""
    running = beside.keep(Running([sys.executable, "-c", program, f"{beside.directory}/lock"]))
    running.await_line("ready")
    with pytest.raises(NoSuchProcess):
        messaging.send(running.pid, MessageType.PING)
    running.say("")
    assert subprocess.run(["kill", "-0", str(running.pid)], check=False).returncode == 0
    assert "signalled" not in running.output


def test_a_program_that_it_executes_is_not_signalled(beside: Place, messaging: Messaging) -> None:
    """It has the same pid, pidfd and open file, and lost the handler."""
    running = beside.keep(Running([sys.executable, "-c", EXECUTES, f"{beside.directory}/lock"]))
    running.await_line("ready")
    messaging.send(running.pid, MessageType.PING)
    running.say("it is cat now")
    running.await_line("it is cat now")
    with pytest.raises(NoSuchProcess):
        messaging.send(running.pid, MessageType.PING)
    running.say("it still is")
    running.await_line("it still is")


def test_without_the_parameter_they_are_strangers(beside: Place) -> None:
    smbd = samba3(beside, "serve")
    with Messaging(beside.config.replace(samba3=False)) as messaging:
        with pytest.raises(NoSuchProcess):
            messaging.send(smbd.pid, MessageType.PING)
        assert messaging.send_all(MessageType.PING, b"").delivered == 0


def test_what_a_killed_process_leaves_in_connections_tdb_is_removed(beside: Place, messaging: Messaging) -> None:
    worker = beside.worker()
    worker.signal(signal.SIGKILL)
    worker.wait()
    connections = messaging._endpoint.presence.members.connections
    assert connections is not None

    def pids() -> set[int]:
        return {one.pid for one in map(unpack_connection, connections._values()) if one is not None}

    assert pids() == {worker.pid, messaging.server_id.pid}
    messaging.clean_up()
    assert pids() == {messaging.server_id.pid}


def test_the_record_of_a_process() -> None:
    classes = MessageClass.GENERAL | MessageClass.PRINT
    value = pack_connection(4711, 0, 0, 1_700_000_000, classes)
    assert (len(connection_key(4711)), len(value)) == (264, 576)
    assert value[:12] == bytes.fromhex("67022800 67120000 ffffffff")
    assert value[560:572] == bytes.fromhex("00f1536500000000 19000000")
    assert unpack_connection(value) == Listener(4711, classes)
    assert unpack_connection(value[:-1]) is None
    assert unpack_connection(bytes(576)) is None
