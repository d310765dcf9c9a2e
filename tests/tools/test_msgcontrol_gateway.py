# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol for users who may not open the lock directory: it goes through the gateway by itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.support.daemons import ENVIRONMENT, PATIENCE, Place
from tests.support.strangers import NOBODY, needs_root

pytestmark = needs_root

ALLOWED = "msgd:allow users = nobody"


def as_nobody(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run msgcontrol as user nobody, who may read the smb.conf and nothing else."""
    place.directory.chmod(0o755)
    place.smb_conf.chmod(0o644)
    command = [sys.executable, "-m", "msgd.tools.msgcontrol", "-s", str(place.smb_conf), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=PATIENCE,
        check=False,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
    )


def done(place: Place, *arguments: str) -> str:
    run = as_nobody(place, *arguments)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def refused(place: Place, *arguments: str) -> str:
    run = as_nobody(place, *arguments)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.count("\n") == 1
    return run.stderr


@pytest.fixture(autouse=True)
def allowed(place: Place) -> None:
    """Nobody may use the gateway."""
    place.configure("log level = 3", ALLOWED)


def test_asks_through_the_gateway(place: Place) -> None:
    msgd, worker = place.msgd(), place.worker()
    for destination in ("msgd", "MSGD", str(msgd.pid)):
        assert done(place, destination, "ping") == f"PONG from pid {msgd.pid}\n"
    assert done(place, "msgd", "debuglevel") == f"PID {msgd.pid}: all:3 msgd:3\n"
    pongs = done(place, "all", "ping").splitlines()
    assert sorted(pongs) == sorted(f"PONG from pid {pid}" for pid in (msgd.pid, worker.pid))
    assert json.loads(done(place, "--json", "msgd", "ping"))["answers"][0]["type"] == "PONG"
    assert re.fullmatch(r"PONG from pid \d+: hello\n", done(place, "msgd", "call", "PING", "hello"))
    assert done(place, "msgd", "send", "0xF123", "x") == ""
    assert done(place, "all", "send", "0xF123", "x") == ""


def test_types_that_the_gateway_does_not_allow(place: Place) -> None:
    msgd = place.msgd()
    assert "msgd:allow types" in refused(place, "msgd", "shutdown")
    assert "msgd:allow types" in refused(place, "all", "debug", "5")
    assert place.debuglevel(msgd.pid) == b"all:3 msgd:3\n\0"


def test_what_the_gateway_cannot_do(place: Place) -> None:
    place.msgd()
    for command in ("pool-usage", "msg-cleanup", "validate-cache"):
        line = refused(place, "msgd", command)
        assert "Permission denied" in line
        assert f"{command} cannot go through msgd's gateway: become root" in line


def test_faults_are_told_as_without_the_gateway(place: Place) -> None:
    place.configure("log level = 3", ALLOWED, "msgd:allow types = all")
    place.msgd()
    assert "no process 77777777 in" in refused(place, "77777777", "ping")
    assert "no handler for onlinestatus" in refused(place, "msgd", "onlinestatus")
    assert "smbd is not running" in refused(place, "smbd", "ping")
    assert done(place, "msgd", "debug", "5") == ""


def test_user_who_may_not_use_the_gateway(place: Place) -> None:
    place.configure("log level = 3")
    place.msgd()
    line = refused(place, "msgd", "ping")
    assert "Permission denied" in line
    assert "msgd:allow users says who may" in line


def test_without_a_gateway(place: Place) -> None:
    place.configure("log level = 3", "msgd:listen =")
    place.msgd()
    line = refused(place, "msgd", "ping")
    assert "Permission denied" in line
    assert "msgd's gateway cannot be used" in line
    assert "become root" in line
