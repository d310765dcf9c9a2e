# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd -D: the invoking process tells how the start went, and the daemon is one."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from msgd.presence.pidfile import read_pid
from msgd.wire.message_types import MessageType
from tests.support.daemons import ENVIRONMENT, PATIENCE, Place, end_process, one_line


def pid_of(place: Place) -> int:
    pid = read_pid(str(place.pid_file.parent), "msgd")
    assert pid is not None
    return pid


@pytest.mark.parametrize("options", [["-D"], [], ["--daemon"]])
def test_starts_and_stops(place: Place, options: list[str]) -> None:
    started = place.run_msgd(*options)
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    pid = pid_of(place)
    assert place.pid_file.read_text() == f"{pid}\n"
    assert place.debuglevel(pid) == b"all:3 msgd:3\n\0"  # ready as soon as the invoking process has ended
    place.send(pid, MessageType.SHUTDOWN)
    end_process(pid, None)
    assert place.files() == set()


def test_is_detached(place: Place) -> None:
    assert place.run_msgd().returncode == 0
    pid = pid_of(place)
    process = Path("/proc", str(pid))
    assert os.getsid(pid) not in (pid, os.getsid(0))  # in a session of its own, and not its leader
    assert (process / "cwd").readlink() == Path("/")
    assert all((process / "fd" / str(fd)).readlink() == Path(os.devnull) for fd in range(3))
    assert "Umask:\t0022\n" in (process / "status").read_text()
    opened = {os.readlink(path) for path in (process / "fd").iterdir()}
    assert not any("smb.conf" in name for name in opened)
    end_process(pid, signal.SIGTERM)


def test_keeps_no_descriptor_of_its_starter(place: Place) -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "msgd.daemon", "-s", str(place.smb_conf)]
    subprocess.run(command, env=ENVIRONMENT, pass_fds=[writer], timeout=PATIENCE, check=True)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b""  # the end of the pipe: nobody has its other end
    end_process(pid_of(place), signal.SIGTERM)


def test_a_huge_descriptor_limit_costs_no_memory(place: Place) -> None:
    ceiling = int(Path("/proc/sys/fs/nr_open").read_text())

    def raise_limit() -> None:
        with contextlib.suppress(ValueError, PermissionError):  # without the privilege it is as huge as it was
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, ceiling))

    command = [sys.executable, "-m", "msgd.daemon", "-s", str(place.smb_conf)]
    subprocess.run(command, env=ENVIRONMENT, preexec_fn=raise_limit, timeout=PATIENCE, check=True)
    pid = pid_of(place)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert int(status["VmRSS"].split()[0]) < 50_000  # kB
    end_process(pid, signal.SIGTERM)


def test_relative_paths_survive_the_change_of_directory(place: Place) -> None:
    started = place.run("msgd.daemon", "-s", "smb.conf", "-l", "logs")
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    pid = pid_of(place)
    place.configure("log level = 6")
    place.send(pid, MessageType.SMB_CONF_UPDATED)
    assert place.debuglevel(pid) == b"all:6 msgd:6\n\0"
    assert "is ready" in (place.directory / "logs" / "log.msgd").read_text()
    end_process(pid, signal.SIGTERM)


def test_hangup_opens_the_log_file_anew(place: Place) -> None:
    place.configure("log level = 3", f"log file = {place.directory}/logs/log.%m")
    assert place.run_msgd().returncode == 0
    pid = pid_of(place)
    log, rotated = place.directory / "logs" / "log.msgd", place.directory / "logs" / "log.msgd.1"
    log.rename(rotated)
    place.debuglevel(pid)
    assert not log.exists()
    place.hangup(pid)
    assert "reloaded: SIGHUP" in log.read_text()
    assert "is ready" in rotated.read_text()
    assert "reloaded" not in rotated.read_text()
    assert {path.stat().st_mode & 0o777 for path in (log, rotated)} == {0o600}, "it is not for everybody to read"
    end_process(pid, signal.SIGTERM)


def test_error_before_detaching(place: Place) -> None:
    place.configure("msgd:close timeout = loud")
    failed = place.run_msgd()
    assert failed.returncode == 1
    assert one_line(failed).startswith(f"msgd: {place.smb_conf}:5: msgd:close timeout = loud")


def test_error_after_detaching(place: Place) -> None:
    (place.directory / "lock").mkdir()
    (place.directory / "lock").chmod(0o777)
    failed = place.run_msgd()
    assert failed.returncode == 1
    assert one_line(failed).startswith(f"msgd: {place.directory}/lock has mode 0777")
    assert place.files() == set()


def test_daemon_that_dies_while_starting(place: Place) -> None:
    program = f"""
import os, sys
from msgd.daemon.detach import run_detached
from msgd.presence.pidfile import PidFile
pid_file = PidFile({str(place.pid_file.parent)!r}, "msgd", {{os.geteuid()}})
sys.exit(run_detached("msgd", pid_file, lambda ready: os._exit(0)))
"""
    failed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE, check=False
    )
    assert failed.returncode == 1
    assert one_line(failed) == "msgd: the daemon ended before it was ready; start it with -i to see why"
