# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Each command of msgcontrol has its effect on Debian's smbd, nmbd and winbindd, and prints what smbcontrol prints."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgd import MessageType, Messaging
from tests.interop.samba import PATIENCE
from tests.interop.servers import ADDRESS, Servers, missing_for_servers
from tests.support.daemons import end_process

tdb = pytest.importorskip("tdb")


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    reason = missing_for_servers()
    if reason is not None:
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="m"))
    try:
        with Servers(directory) as servers:
            yield servers
    finally:
        shutil.rmtree(directory)


def normal(output: str) -> list[str]:
    """The lines, without what differs from one answer of a daemon to the next."""
    without = re.sub(
        r"0x[0-9a-f]+|\(answer from pid \d+\)|contains +\d+ bytes in +\d+ blocks|total +\d+ bytes in \d+", "", output
    )
    return without.splitlines()


# The same answers


@pytest.mark.parametrize("name", ["smbd", "nmbd", "winbindd"])
@pytest.mark.parametrize("command", ["ping", "debuglevel", "noop", "dmalloc-mark", "dmalloc-log-changed"])
def test_every_daemon(servers: Servers, name: str, command: str) -> None:
    ours, theirs = servers.msgcontrol(name, command), servers.smbcontrol(name, command)
    assert ours == theirs
    assert ours[0] == 0
    assert command not in ("ping", "debuglevel") or str(servers.pid_of(name)) in ours[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["smbd", "num-children"],
        ["smbd", "profilelevel"],
        ["winbindd", "onlinestatus"],
        ["winbind", "onlinestatus"],
        ["winbindd", "validate-cache"],
        ["winbindd", "dump-domain-list"],
        ["winbindd", "dump-domain-list", "BUILTIN"],
        ["winbindd", "dump-domain-list", "NOSUCH"],
        ["nmbd", "force-election"],
        ["smbd", "notify-cleanup"],
        ["smbd", "reload-printers"],
        ["smbd", "drvupgrade", "driver"],
        ["smbd", "idmap", "delete"],
        ["smbd", "idmap", "delete", "UID 4711"],
        ["smbd", "idmap", "kill", "GID 4711"],
        ["winbindd", "disconnect-dc"],
        ["winbindd", "ip-dropped", "10.1.2.3"],
        ["smbd", "close-share", "nosuch"],
        ["smbd", "kill-client-ip", "fe80::1"],
        ["77777777", "msg-cleanup"],
        ["smbd", "msg-cleanup"],
    ],
)
def test_prints_what_smbcontrol_prints(servers: Servers, arguments: list[str]) -> None:
    ours, theirs = servers.msgcontrol(*arguments), servers.smbcontrol(*arguments)
    assert (ours[0], normal(ours[1])) == (theirs[0], normal(theirs[1]))


@pytest.mark.parametrize("name", ["smbd", "nmbd", "winbindd"])
def test_pool_usage(servers: Servers, name: str) -> None:
    """The whole report is there; smbcontrol, which does not wait for it, shows the same one."""
    status, ours = servers.msgcontrol(name, "pool-usage")
    assert status == 0
    assert ours.startswith("full talloc report on 'null_context'")
    reader = servers.smbcontrol(name, "pool-usage")[1]  # run() reads until all copies of stdout are closed
    assert abs(len(reader.splitlines()) - len(ours.splitlines())) < 20


def test_pool_usage_is_for_one_process(servers: Servers) -> None:
    assert servers.smbcontrol("all", "pool-usage")[0] == 1
    status, output = servers.msgcontrol("all", "pool-usage")
    assert status == 1
    assert "one process" in output


def test_text_of_nobody(servers: Servers) -> None:
    status, output = servers.msgcontrol("nmbd", "rpc-dump-status")
    assert status == 0
    assert "has written nothing" in output


def test_ringbuf_log(servers: Servers) -> None:
    for name in ("smbd", "winbindd"):
        ours, theirs = servers.msgcontrol(name, "ringbuf-log"), servers.smbcontrol(name, "ringbuf-log")
        assert ours[0] == theirs[0] == 0
        assert theirs[1].startswith(ours[1][:2000])
        assert len(ours[1]) > 100


def test_no_handler_is_told_before_the_timeout(servers: Servers) -> None:
    """smbcontrol waits for 10 seconds, and says that there were no replies."""
    began = time.monotonic()
    status, output = servers.msgcontrol("nmbd", "num-children")
    assert time.monotonic() - began < 8
    assert (status, output) == (1, f"msgcontrol: no handler for num-children in {servers.pid_of('nmbd')}\n")
    assert servers.smbcontrol("-t", "1", "nmbd", "num-children") == (1, "No replies received\n")


def test_all(servers: Servers) -> None:
    """Each process answers once, also winbindd, of which smbcontrol prints two answers; who cannot does not count."""
    with Messaging(servers.config()) as messaging:
        pids = sorted(process.pid for process in messaging.processes() if process.pid != messaging.server_id.pid)
    status, output = servers.msgcontrol("all", "ping")
    assert status == 0
    assert sorted(output.splitlines()) == sorted(f"PONG from pid {pid}" for pid in pids)
    assert {servers.pid_of(name) for name in servers.daemons} < set(pids)
    began = time.monotonic()
    assert servers.msgcontrol("all", "num-children") == servers.smbcontrol("-t", "1", "smbd", "num-children")
    assert time.monotonic() - began < 9, "nobody waits out the timeout for those that have no handler"


def test_case_is_ignored(servers: Servers) -> None:
    pong = f"PONG from pid {servers.pid}\n"
    for destination, command in (("SMBD", "PING"), ("Smbd", "ping"), (str(servers.pid), "PinG")):
        assert servers.msgcontrol(destination, command) == (0, pong)
    assert servers.msgcontrol("WINBIND", "Ping") == (0, f"PONG from pid {servers.pid_of('winbindd')}\n")
    assert servers.msgcontrol("Notify-Daemon", "ping")[0] == 0, "a name in names.tdb"


# Effects


def test_debug_reaches_the_parent_and_the_child_of_a_session(servers: Servers) -> None:
    with servers.session() as session:
        try:
            assert servers.msgcontrol("smbd", "debug", "3") == (0, "")
            for pid in (servers.pid, session.pid):
                answered_with(servers, pid, "all:3 ")
        finally:
            servers.msgcontrol("smbd", "debug", "1")


def answered_with(servers: Servers, pid: int, beginning: str) -> None:
    """Ask for the debug level until it begins so: the parent hands a message on in its own time."""
    deadline = time.monotonic() + PATIENCE
    with Messaging(servers.config()) as messaging:
        servers.await_answer(messaging)
        while True:
            answer = messaging.request(pid, MessageType.REQ_DEBUGLEVEL, timeout=PATIENCE)
            if answer.data.startswith(beginning.encode()):
                return
            assert time.monotonic() < deadline, answer.data


@pytest.mark.parametrize("name", ["smbd", "nmbd", "winbindd"])
def test_reload_config(servers: Servers, name: str) -> None:
    text = servers.file.read_text()
    try:
        servers.file.write_text(text.replace("log level = 1", "log level = 2"))
        assert servers.msgcontrol(name, "reload-config") == (0, "")
        answered_with(servers, servers.pid_of(name), "all:2 ")
    finally:
        servers.file.write_text(text)
        servers.msgcontrol(name, "reload-config")


def test_num_children_counts_a_session(servers: Servers) -> None:
    before = servers.msgcontrol("smbd", "num-children")[1]
    with servers.session():
        during = servers.msgcontrol("smbd", "num-children")[1]
        assert during == servers.smbcontrol("smbd", "num-children")[1]
    assert int(during.removesuffix(" children\n")) == int(before.removesuffix(" children\n")) + 1


@pytest.mark.parametrize("share", ["share", "*"])
def test_close_share(servers: Servers, share: str) -> None:
    with servers.session() as session:
        assert servers.msgcontrol("smbd", "close-share", "other") == (0, "")
        assert "blocks available" in session.list()
        assert servers.msgcontrol("smbd", "close-share", share) == (0, "")
        assert session.is_cut()


def test_close_denied_share(servers: Servers) -> None:
    """A user who may use the share stays.  One who may no longer use it goes."""
    text = servers.file.read_text()
    with servers.session() as session:
        assert servers.msgcontrol("smbd", "close-denied-share", "share") == (0, "")
        assert "blocks available" in session.list()
        try:
            servers.file.write_text(text.replace("[share]\n", "[share]\n    valid users = root\n"))
            servers.msgcontrol("smbd", "reload-config")
            deadline = time.monotonic() + PATIENCE
            while "blocks available" in session.list():  # smbd hands the reload on to the child in its own time
                assert servers.msgcontrol("smbd", "close-denied-share", "share") == (0, "")
                assert time.monotonic() < deadline
        finally:
            servers.file.write_text(text)
            servers.msgcontrol("smbd", "reload-config")


def test_kill_client_ip(servers: Servers) -> None:
    with servers.session() as session:
        assert servers.msgcontrol("smbd", "kill-client-ip", "10.99.0.99") == (0, "")
        assert "blocks available" in session.list()
        assert servers.msgcontrol("smbd", "kill-client-ip", ADDRESS) == (0, "")
        assert session.has_ended_in_smbd()
        assert session.is_cut()


def test_address_that_is_none(servers: Servers) -> None:
    status, output = servers.msgcontrol("smbd", "kill-client-ip", "here")
    assert (status, output) == (1, "msgcontrol: here is not a valid IP address!\n")
    assert servers.smbcontrol("smbd", "kill-client-ip", "here") == (1, "here is not a valid IP address!\n")


@pytest.mark.parametrize("mode", ["on", "count", "flush", "off"])
def test_profile(servers: Servers, mode: str) -> None:
    shown = {"on": "count and time", "count": "count only", "flush": "count only", "off": "off"}[mode]
    assert servers.msgcontrol("smbd", "profile", mode) == (0, "")
    theirs = servers.smbcontrol("smbd", "profilelevel")
    assert theirs == (0, f"Profiling {shown} on pid {servers.pid}\n")
    assert servers.msgcontrol("smbd", "profilelevel") == theirs


def test_offline_and_online(servers: Servers) -> None:
    cache = servers.directory / "state" / "winbindd_cache.tdb"
    assert servers.msgcontrol("winbindd", "offline") == (0, "")
    assert len(record(cache) or b"") == 4
    online = servers.smbcontrol("winbindd", "onlinestatus")[1]
    assert "global:Offline" in online
    assert servers.msgcontrol("winbindd", "onlinestatus") == (0, online)
    assert servers.msgcontrol("winbindd", "online") == (0, "")
    assert record(cache) is None
    assert "global:Online" in servers.msgcontrol("winbindd", "onlinestatus")[1]


def record(cache: Path) -> bytes | None:
    database = tdb.Tdb(str(cache), 0, tdb.NOMMAP, 0)
    try:
        return database.get(b"WINBINDD_OFFLINE\0")  # type: ignore[no-any-return]
    finally:
        database.close()


def test_force_election(servers: Servers) -> None:
    servers.msgcontrol("nmbd", "debug", "3")
    try:
        assert servers.msgcontrol("nmbd", "force-election") == (0, "")
        deadline = time.monotonic() + PATIENCE
        while "Sending election packet" not in servers.msgcontrol("nmbd", "ringbuf-log")[1]:
            assert time.monotonic() < deadline
    finally:
        servers.msgcontrol("nmbd", "debug", "1")


def test_shutdown(servers: Servers) -> None:
    """nmbd ends, and what it leaves after a kill is removed by msg-cleanup."""
    nmbd = servers.daemons["nmbd"]
    try:
        assert servers.msgcontrol("nmbd", "shutdown") == (0, "")
        nmbd.wait(PATIENCE)
        assert "nmbd is not running" in servers.msgcontrol("nmbd", "ping")[1]
    finally:
        killed = servers.start_daemon("nmbd")
    end_process(killed.pid, 9)
    killed.wait()
    try:
        sockets = servers.directory / "lock" / "msg.sock"
        assert (sockets / str(killed.pid)).exists()
        assert servers.msgcontrol(killed.pid, "msg-cleanup") == (0, f"cleanup({killed.pid}) returned ok\n")
        assert not (sockets / str(killed.pid)).exists()
        assert not (servers.directory / "lock" / "msg.lock" / str(killed.pid)).exists()
    finally:
        servers.start_daemon("nmbd")
