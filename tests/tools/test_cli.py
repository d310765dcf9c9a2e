# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Behaviour that all programs share: closed or full standard descriptors, and a reader that has gone away."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

import pytest

from msgd.presence.pidfile import read_pid
from tests.support.daemons import ENVIRONMENT, PATIENCE, Finished, Place, Running, end_process, one_line

PROGRAMS = {
    "msgd": "msgd.daemon",
    "msgcontrol": "msgd.tools.msgcontrol",
    "msgstatus": "msgd.tools.msgstatus",
    "msgparm": "msgd.tools.msgparm",
    "msgbench": "msgd.bench",
}


def shell(redirected: str, module: str, *arguments: str) -> Finished:
    """Run a program with its descriptors redirected as a shell does it."""
    command = f"exec {shlex.join([sys.executable, '-m', module, *arguments])} {redirected}"
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE, check=False
    )


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("redirected", "complaint"),
    [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device"), ("<&- >&-", "Bad file descriptor")],
)
def test_failed_output_is_one_line(program: str, redirected: str, complaint: str) -> None:
    failed = shell(redirected, PROGRAMS[program], "--version")
    assert failed.returncode == 1
    assert one_line(failed) == f"{program}: stdout: {complaint}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_exit_status_with_closed_stderr(program: str) -> None:
    failed = shell("2>&-", PROGRAMS[program], "--frobnicate")
    assert (failed.returncode, failed.stdout, failed.stderr) == (2, "", "")


def test_closed_stdout_without_output(place: Place) -> None:
    msgd = place.msgd()
    done = shell(">&-", PROGRAMS["msgcontrol"], "-s", str(place.smb_conf), "msgd", "debug", "4")
    assert (done.returncode, done.stderr) == (0, "")
    assert place.debuglevel(msgd.pid) == b"all:4 msgd:4\n\0"


def test_daemon_starts_with_all_descriptors_closed(place: Place) -> None:
    done = shell("<&- >&- 2>&-", PROGRAMS["msgd"], "-D", "-s", str(place.smb_conf))
    assert done.returncode == 0
    pid = read_pid(str(place.pid_file.parent), "msgd")
    assert pid is not None
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {os.devnull}
    end_process(pid, signal.SIGTERM)


def test_closed_descriptors_are_not_reused_for_sockets(place: Place) -> None:
    command = shlex.join([sys.executable, "-m", PROGRAMS["msgd"], "-F", "-s", str(place.smb_conf)])
    msgd = place.keep(Running(["sh", "-c", f"exec {command} <&- >&-"]))
    msgd.await_line("is ready")
    assert {os.readlink(f"/proc/{msgd.pid}/fd/{fd}") for fd in range(2)} == {os.devnull}
