# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd's and Samba's programs on one smb.conf: smbcontrol controls msgd, and msgcontrol controls smbd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from msgd import MessageType, Messaging
from tests.interop.samba import Samba, stop


def lines(output: str) -> set[str]:
    return set(output.splitlines())


# msgd under smbcontrol


def test_smbcontrol_ping(samba: Samba, msgd: int) -> None:
    assert samba.smbcontrol(msgd, "ping") == (0, f"PONG from pid {msgd}\n")


def test_smbcontrol_all_ping(samba: Samba, msgd: int) -> None:
    samba.smbcontrol_until({f"PONG from pid {msgd}", f"PONG from pid {samba.pid}"}, "all", "ping")


def test_smbcontrol_debug_and_debuglevel(samba: Samba, msgd: int) -> None:
    assert samba.smbcontrol(msgd, "debug", "5") == (0, "")
    status, output = samba.smbcontrol(msgd, "debuglevel")
    assert status == 0
    assert output.startswith(f"PID {msgd}: all:5")


def test_smbcontrol_shutdown(samba: Samba) -> None:
    daemon = samba.start_msgd()
    try:
        assert samba.smbcontrol(daemon.pid, "shutdown") == (0, "")
        assert daemon.wait(30) == 0
    finally:
        stop(daemon)
    status, output = samba.smbcontrol("-t", "1", daemon.pid, "ping")
    assert status != 0
    assert "PONG" not in output


def test_smbcontrol_reload_config(samba: Samba, changing_log_level: None) -> None:
    daemon = samba.start_msgd()
    try:
        samba.file.write_text(samba.file.read_text().replace("log level = 1", "log level = 4"))
        assert samba.smbcontrol(daemon.pid, "reload-config") == (0, "")
        assert samba.smbcontrol(daemon.pid, "debuglevel")[1].startswith(f"PID {daemon.pid}: all:4")
    finally:
        stop(daemon)


# smbd under msgcontrol


def test_msgcontrol_ping(samba: Samba) -> None:
    for destination in (samba.pid, "smbd"):
        assert samba.msgcontrol(destination, "ping") == (0, f"PONG from pid {samba.pid}\n")


def test_msgcontrol_all_ping(samba: Samba, msgd: int) -> None:
    with Messaging(samba.config()) as messaging:
        pids = {process.pid for process in messaging.processes()} - {messaging.server_id.pid}
    status, output = samba.msgcontrol("all", "ping")
    assert (status, lines(output)) == (0, {f"PONG from pid {pid}" for pid in pids})
    assert {samba.pid, msgd} < pids


def test_msgcontrol_debuglevel(samba: Samba) -> None:
    ours, theirs = samba.msgcontrol(samba.pid, "debuglevel"), samba.smbcontrol(samba.pid, "debuglevel")
    assert ours[0] == 0
    assert ours == theirs


def test_msgcontrol_debug(samba: Samba) -> None:
    assert samba.msgcontrol("smbd", "debug", "2") == (0, "")
    assert samba.smbcontrol(samba.pid, "debuglevel")[1].startswith(f"PID {samba.pid}: all:2 ")
    assert samba.msgcontrol("smbd", "debug", "1") == (0, "")


@pytest.fixture
def changing_log_level(samba: Samba) -> Iterator[None]:
    before = samba.file.read_text()
    yield
    samba.file.write_text(before)
    samba.smbcontrol(samba.pid, "reload-config")


def test_msgcontrol_reload_config(samba: Samba, changing_log_level: None) -> None:
    """smbd reloads its smb.conf: afterwards it reports the changed values."""
    samba.file.write_text(samba.file.read_text().replace("log level = 1", "log level = 3"))
    assert samba.msgcontrol("smbd", "reload-config") == (0, "")
    with Messaging(samba.config()) as messaging:
        samba.await_answer(messaging)
        answer = messaging.request(samba.pid, MessageType.REQ_DEBUGLEVEL, b"", MessageType.DEBUGLEVEL)
    assert answer.data.startswith(b"all:3 ")


def test_msgcontrol_to_a_missing_process(samba: Samba, msgd: int) -> None:
    status, output = samba.msgcontrol(samba.pid + (1 << 20), "ping")
    assert status == 1
    assert len(lines(output)) == 1
    assert "Traceback" not in output
