# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd answers Samba's control messages as Samba's daemons do, and its connection processes obey what it is told."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from msgd import MessageType, Messaging
from msgd.daemon.control.answers import FOR_OTHERS
from msgd.daemon.logs import Log
from msgd.wire.control import ProfileMode, pack_int
from tests.daemon.gateway.raw import RawClient
from tests.support.daemons import PATIENCE, Place, Running
from tests.support.harness import drain


def control(place: Place, *arguments: str) -> str:
    done = place.msgcontrol(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# pool-usage


def test_pool_usage_is_there_when_the_command_returns(place: Place) -> None:
    place.msgd()
    lines = control(place, "msgd", "pool-usage").splitlines()
    assert lines[0].startswith("full memory report on 'msgd' (total ")
    assert any(line.split()[:2] == ["dict", "contains"] for line in lines)
    assert any(line.strip().startswith("VmRSS: ") for line in lines)


def test_pool_usage_never_waits_for_a_reader(place: Place) -> None:
    """A pipe that is full takes nothing, and the daemon goes on; our end stays as it was, blocking."""
    msgd = place.msgd()
    reader, writer = os.pipe()
    with contextlib.ExitStack() as opened, Messaging(place.config) as messaging:
        opened.callback(os.close, reader)
        opened.callback(os.close, writer)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
        messaging.send(msgd.pid, MessageType.REQ_POOL_USAGE, fds=[writer])
        drain(messaging)
        msgd.await_line("writing to the descriptor")
        assert place.debuglevel(msgd.pid)
        assert os.get_blocking(writer)


def test_pool_usage_into_a_file_and_a_socket(place: Place) -> None:
    msgd = place.msgd()
    path = place.directory / "report"
    ours, theirs = socket.socketpair()
    with path.open("wb") as file, ours, theirs, Messaging(place.config) as messaging:
        file.write(b"before\n")
        file.flush()
        for fd in (file.fileno(), theirs.fileno()):
            messaging.send(msgd.pid, MessageType.REQ_POOL_USAGE, fds=[fd])
        drain(messaging)
        assert place.debuglevel(msgd.pid)
        assert ours.recv(1 << 16).startswith(b"full memory report on")
    assert path.read_bytes().startswith(b"before\nfull memory report on")


def test_pool_usage_without_a_descriptor(place: Place) -> None:
    msgd = place.msgd()
    place.send(msgd.pid, MessageType.REQ_POOL_USAGE)
    msgd.await_line("came without a descriptor")


# The log


def test_ringbuf_log(place: Place) -> None:
    msgd = place.msgd()
    assert control(place, "msgd", "debug", "4") == ""
    lines = control(place, "msgd", "ringbuf-log").splitlines()
    assert any("is ready as" in line for line in lines)
    assert "debug levels set to all:4 msgd:4" in lines[-1]
    assert f"msgd[{msgd.pid}]" in lines[-1]


def test_kept_log_is_bounded(tmp_path: Path) -> None:
    """The latest 64 KiB are kept, and a longer line is cut."""
    with Log(str(tmp_path / "log")) as log:
        for number in range(400):
            logging.getLogger("msgd.test").error("line %d %s", number, "x" * 300)
        latest = log.latest()
        assert 60_000 < len(latest) <= 1 << 16
        assert "line 399 " in latest
        assert "line 0 " not in latest
        logging.getLogger("msgd.test").error("y" * 100_000)
        assert len(log.latest()) <= (1 << 16) + 1
        log.reopen(str(tmp_path / "other"))
        assert "yyy" in log.latest()


# Profiling


def test_profile(place: Place) -> None:
    msgd = place.msgd()
    levels = {ProfileMode.OFF: 1, ProfileMode.COUNT: 3, ProfileMode.ON: 7, ProfileMode.FLUSH: 7}
    with Messaging(place.config) as messaging:
        for mode, level in levels.items():
            messaging.send(msgd.pid, MessageType.PROFILE, pack_int(mode))
            assert messaging.request(msgd.pid, MessageType.REQ_PROFILELEVEL, timeout=PATIENCE).data == pack_int(level)
        for _ in range(3):
            messaging.request(msgd.pid, MessageType.PING, timeout=PATIENCE)
    assert control(place, "msgd", "profilelevel") == f"Profiling count and time on pid {msgd.pid}\n"
    lines = {line.split()[0]: line for line in control(place, "msgd", "pool-usage").splitlines()}
    assert lines["PING"].split()[1:3] == ["3", "received"]
    assert "ms in handlers" in lines["PING"]
    assert lines["PONG"].split()[3:5] == ["3", "sent"]
    control(place, "msgd", "profile", "off")
    place.send(msgd.pid, MessageType.PING)
    assert "PING                                3 received" in control(place, "msgd", "pool-usage")
    place.send(msgd.pid, MessageType.PROFILE, pack_int(ProfileMode.FLUSH))
    assert "received" not in control(place, "msgd", "pool-usage")


def test_profile_lets_the_metrics_count_on(place: Place) -> None:
    place.configure("log level = 3", f"msgd:metrics = unix:{place.directory}/metrics")
    place.msgd()
    control(place, "msgd", "profile", "on")
    control(place, "msgd", "profile", "off")
    control(place, "msgd", "ping")
    with socket.socket(socket.AF_UNIX) as scraper:
        scraper.connect(f"{place.directory}/metrics")
        scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = scraper.makefile().read()
    (line,) = (line for line in text.splitlines() if re.match(r'msgd_\w*messages\w*\{.*direction="in".*general', line))
    assert float(line.split()[-1]) == 3


def test_unknown_profile_mode_changes_nothing(place: Place) -> None:
    msgd = place.msgd()
    place.send(msgd.pid, MessageType.PROFILE, pack_int(9))
    msgd.await_line("nothing is changed")
    failed = place.msgcontrol("msgd", "profile", "sometimes")
    assert failed.returncode == 1
    assert "unknown profile command 'sometimes'" in failed.stderr


# Messages for others


def test_messages_for_other_daemons_are_no_drops(place: Place) -> None:
    msgd = place.msgd()
    for message_type in FOR_OTHERS:
        place.send(msgd.pid, message_type, b"share\0")
    assert control(place, "msgd", "close-share", "*") == ""
    assert "drop" not in control(place, "msgd", "ringbuf-log")
    place.send(msgd.pid, MessageType.WINBIND_FORGET_STATE)
    msgd.await_line("of a type without handler")


def test_faults_and_sleep_are_for_developers(place: Place) -> None:
    msgd = place.msgd()
    place.send(msgd.pid, MessageType.SMB_INJECT_FAULT, pack_int(15))
    place.send(msgd.pid, MessageType.SMB_SLEEP, pack_int(3600))
    assert place.debuglevel(msgd.pid)
    for arguments in (("inject", "bus"), ("sleep", "1")):
        failed = place.msgcontrol("msgd", *arguments)
        assert failed.returncode == 1
        assert "only available in developer and self test builds" in failed.stderr


DEVELOPER = """
import importlib, sys
from msgd import _registry
_registry.DEVELOPER = True
sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
"""


def as_developer(place: Place, module: str, *arguments: str) -> Running:
    """Start a program of a build that was configured with --enable-developer."""
    command = [sys.executable, "-c", DEVELOPER, module, *arguments]
    return place.keep(Running(command, place.directory))


def test_developers_inject_faults_and_sleep(place: Place) -> None:
    msgd = as_developer(place, "msgd.daemon.main", "-F", "-s", str(place.smb_conf))
    msgd.await_line("is ready")
    control = ("msgd.tools.msgcontrol.main", "-s", str(place.smb_conf), "msgd")
    assert as_developer(place, *control, "sleep", "1").wait() == 0
    msgd.await_line("for 1 seconds")
    assert place.debuglevel(msgd.pid), "it is awake again"
    assert as_developer(place, *control, "sleep", "3601").wait() == 2
    assert as_developer(place, *control, "inject", "flood").wait() == 2
    assert as_developer(place, *control, "inject", "segv").wait() == 0
    assert msgd.wait() == -signal.SIGSEGV


# Connection processes


def test_connection_processes_obey_what_the_main_process_is_told(place: Place) -> None:
    msgd = place.msgd()
    with RawClient(place) as one, RawClient(place) as two:
        pids = one.pid, two.pid
        control(place, "msgd", "debug", "7")
        control(place, "msgd", "profile", "on")
        for pid in pids:
            assert place.debuglevel(pid) == b"all:7 msgd:7\n\0"
            assert control(place, str(pid), "profilelevel") == f"Profiling count and time on pid {pid}\n"
            assert control(place, str(pid), "pool-usage").startswith("full memory report on 'msgd's connection")
        with RawClient(place) as later:
            assert place.debuglevel(later.pid) == b"all:7 msgd:7\n\0"
            assert "count and time" in control(place, str(later.pid), "profilelevel")
        msgd.kill_alone()
        again = place.msgd()
        assert "2 connection processes of an earlier msgd go on" in again.output
        control(place, "msgd", "debug", "5")
        for pid in pids:
            assert place.debuglevel(pid) == b"all:5 msgd:5\n\0"


def test_a_child_that_is_just_starting_hears_of_it(place: Place) -> None:
    """The message comes after the fork and before the child has an address."""
    msgd = place.msgd()
    with place.amid_a_dispatch(msgd.pid):
        client = RawClient(place)  # its process is forked after the reload, and at once the message is there
        place.send(msgd.pid, MessageType.DEBUG, b"6\0")
    with client:
        assert client.ask(op="ping")["ok"]
        assert place.debuglevel(client.pid) == b"all:6 msgd:6\n\0"


@pytest.mark.parametrize("mode", list(ProfileMode))
def test_modes_have_sambas_numbers(mode: ProfileMode) -> None:
    assert {"OFF": 0, "COUNT": 1, "ON": 2, "FLUSH": 3}[mode.name] == mode


def test_report_is_no_file_of_the_directory(place: Place) -> None:
    """A command leaves nothing behind."""
    msgd = place.msgd()
    control(place, "msgd", "pool-usage")
    assert place.files() == {"msgd.pid", "msgd.sock", str(msgd.pid)}
    assert Path(place.gateway).exists()
