# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Runs inside the booted container, as a service of its systemd: Debian's packages, from installation to purge.

What each check saw goes to /out/report.jsonl, a line a check.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

REPORT = Path("/out/report.jsonl")
OLD = "/srv/old"
NEW = "/srv/new"
TESTS = Path("/srv/debian-tests")
SMB_CONF = Path("/etc/msgd/smb.conf")
EDITED = "[global]\n# edited\nlog level = 3\n"
PATIENCE = 60.0
PACKAGES = ("msgd", "msgd-bench", "python3-msgd")
PLACES = ("/etc", "/lib/systemd", "/run", "/usr", "/var/lib", "/var/log")
NOT_MSGDS = ("/run/systemd", "/run/udev", "/run/log", "/var/lib/dpkg", "/var/lib/systemd", "/var/log", "/etc/.pwd.lock")
"""What the machine itself writes meanwhile."""

CHECKS: list[Callable[[], object]] = []


def check(body: Callable[[], object]) -> Callable[[], object]:
    """One of the checks, which are made in the order of this file."""
    CHECKS.append(body)
    return body


def run(*command: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{command} exited {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def install(directory: str) -> None:
    """Install the packages as apt does, without questions: an edited configuration is kept."""
    run("dpkg", "--force-confold", "-i", *sorted(str(path) for path in Path(directory).glob("*.deb")))


def version() -> str:
    return run("dpkg-query", "-W", "-f", "${Version}", "msgd")


def main_pid() -> int:
    return int(run("systemctl", "show", "-P", "MainPID", "msgd.service"))


def is_msgds(path: str) -> bool:
    return "msgd" in path and not path.startswith("/usr/share/doc/python3-msgd/examples/")


def files() -> set[str]:
    """Every path of these places."""
    found = set()
    for place in PLACES:
        for directory, directories, names in os.walk(place):
            directories[:] = [name for name in directories if f"{directory}/{name}" not in NOT_MSGDS]
            found |= {f"{directory}/{name}" for name in (*directories, *names)}
    return found


before: dict[str, set[str]] = {}


@check
def the_version_before_is_installed_and_runs() -> None:
    before["files"], before["groups"] = files(), set(run("getent", "group").splitlines())
    install(OLD)
    assert run("systemctl", "is-active", "msgd.service", "msgd.socket") == "active\nactive"
    assert run("systemctl", "is-enabled", "msgd.service", "msgd.socket") == "enabled\nenabled"
    assert run("msgcontrol", "msgd", "ping") == f"PONG from pid {main_pid()}"
    assert run("sysctl", "-n", "net.unix.max_dgram_qlen") == "4096"
    assert "compiled hot path: yes" in run("msgd", "-b")


@check
def upgrade_keeps_an_edited_configuration_and_connected_clients() -> str:
    SMB_CONF.write_text(EDITED)
    old, pid = version(), main_pid()
    import_client = "from msgd.client import Client; import sys; c = Client(timeout=60); c.ping(); print(flush=True)"
    wait = "sys.stdin.readline(); c.ping(); print('still served', flush=True)"
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", f"{import_client}; {wait}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "\n"
        install(NEW)
        client.stdin.write("\n")
        client.stdin.flush()
        said = client.stdout.readline()
    assert said == "still served\n"
    assert main_pid() not in (0, pid)
    assert version() != old
    assert SMB_CONF.read_text() == EDITED
    assert run("msgcontrol", "msgd", "debuglevel").endswith("msgd:3")
    return f"{old} to {version()}"


@check
def autopkgtest_s_tests() -> None:
    for name in ("library", "daemon"):
        run(str(TESTS / name))


@check
def installed_again_from_scratch() -> None:
    """A machine that never had the version before is the same."""
    run("dpkg", "-P", *PACKAGES)
    install(NEW)
    assert "# smb.conf for msgd." in SMB_CONF.read_text()
    run("msgcontrol", "msgd", "ping")


@check
def remove_stops_it_and_keeps_the_configuration() -> None:
    pid = main_pid()
    pidfd = os.pidfd_open(pid)
    run("dpkg", "-r", *PACKAGES)
    assert select.select([pidfd], [], [], PATIENCE)[0], f"{pid} has not ended"
    os.close(pidfd)
    assert SMB_CONF.exists()
    assert not Path("/usr/sbin/msgd").exists()


@check
def purge_leaves_nothing() -> None:
    run("dpkg", "-P", *PACKAGES)
    left = {path for path in files() - before["files"] if not path.startswith("/usr/share/mime")}
    assert not {path for path in left if "msgd" in path}
    assert set(run("getent", "group").splitlines()) <= before["groups"]
    run("systemctl", "daemon-reload")
    assert run("systemctl", "show", "-P", "LoadState", "msgd.service", "msgd.socket").split() == ["not-found"] * 2


def results() -> Iterator[dict[str, object]]:
    for body in CHECKS:
        try:
            yield {"check": body.__name__, "fault": None, "seen": body()}
        except Exception:  # noqa: BLE001  # it is told to the test
            yield {"check": body.__name__, "fault": traceback.format_exc()}


if __name__ == "__main__":
    with REPORT.open("w", buffering=1) as report:
        for result in results():
            report.write(json.dumps(result) + "\n")
