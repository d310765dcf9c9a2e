# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Runs inside the booted container, as a service of its systemd: one check after the other, on the installed msgd.

It is installed from the tree, or from Debian's packages if they are there.

What each saw goes to /out/report.jsonl, a line a check.  The distribution's Python runs it, with the installed package.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPORT = Path("/out/report.jsonl")
TREE = "/srv/tree"
TREE_WITHOUT_SYSTEMD = "/srv/tree-without-systemd"
PACKAGE = "/usr/lib/msgd"
DEBS = sorted(map(str, Path("/srv/debs").glob("*.deb")))
SMB_CONF = Path("/etc/msgd/smb.conf")
RUN = Path("/run/msgd")
PRIVATE = "/var/lib/msgd/private"
LOG = Path("/var/log/msgd/log.msgd")
PATIENCE = 30.0
DROP_IN = Path("/etc/systemd/system/msgd.service.d/check.conf")
IMPATIENT = "[Service]\nWatchdogSec=2\nTimeoutAbortSec=5\n"
"""For the check of the watchdog only: a machine may stand still for longer than that."""

CHECKS: list[Callable[[], object]] = []


def check(body: Callable[[], object]) -> Callable[[], object]:
    """One of the checks, which are made in the order of this file."""
    CHECKS.append(body)
    return body


def run(*command: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        shown = told("journalctl", "-n", "30", "-o", "cat")
        raise AssertionError(f"{command} exited {done.returncode}: {done.stdout}{done.stderr}{shown}")
    return done.stdout.strip()


def told(*command: str) -> str:
    """What a command prints, whether it succeeds or not."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return f"\n{done.stdout}{done.stderr}"


def status_of(*command: str) -> int:
    return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).returncode


def show(what: str) -> str:
    return run("systemctl", "show", "-P", what, "msgd.service")


def main_pid() -> int:
    return int(show("MainPID"))


def connect() -> Any:
    """A client of the gateway; it returns when it is served."""
    from msgd.client import Client

    return Client(timeout=PATIENCE)


def stop() -> None:
    """Stop it for good: the socket would start it again.

    What the checks start after it is not to be taken for a loop of failures: systemd refuses a sixth start within ten
    seconds.
    """
    run("systemctl", "stop", "msgd.socket", "msgd.service")
    status_of("systemctl", "reset-failed", "msgd.service")  # which it refuses if it has forgotten the unit already


def await_end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        assert select.select([pidfd], [], [], PATIENCE)[0], f"{pid} has not ended"
        os.close(pidfd)


def reload() -> None:
    """Have the settings read anew; it is done when a question after it is answered."""
    run("systemctl", "reload", "msgd")
    run("msgcontrol", "msgd", "debuglevel")


def take_up() -> None:
    """Let the unit be as its files say now; these restarts are not to be taken for a loop of failures."""
    run("systemctl", "daemon-reload")
    run("systemctl", "reset-failed", "msgd")
    run("systemctl", "restart", "msgd")


def journal(**fields: object) -> list[dict[str, str]]:
    """The entries of msgd's that have these fields."""
    run("journalctl", "--sync")
    matches = [f"{name}={value}" for name, value in fields.items()]
    entries = run("journalctl", "-u", "msgd.service", "-o", "json", *matches)
    return [json.loads(line) for line in entries.splitlines()]


STATE = ("systemctl status msgd", "systemctl list-jobs", "journalctl -n 50 -o short-monotonic", "ps axfo pid,stat,cmd")


def last_word_of(client: Any) -> str:
    from msgd import GatewayClosed

    try:
        said = client.receive(PATIENCE)
    except GatewayClosed as error:
        return str(error)
    now = [f"\n{command}:{told(*command.split())}" for command in STATE]
    raise AssertionError(f"{client.server_id} said {said}, and had no last word{''.join(now)}")


clients: list[Any] = []


@check
def make_install() -> None:
    if DEBS:
        run("dpkg", "-i", *DEBS)  # it runs now
    else:
        _, _, commands = run("make", "--no-print-directory", "-C", TREE, "install").partition(
            "or after these commands:\n"
        )
        run("sh", "-ec", commands)
        sys.path.insert(0, PACKAGE)
    SMB_CONF.write_text("[global]\nlog level = 3\n")
    if DEBS:
        reload()
    modes = {path: Path(path).stat().st_mode & 0o777 for path in ("/run/msgd", PRIVATE, "/var/log/msgd")}
    assert modes == {"/run/msgd": 0o755, PRIVATE: 0o700, "/var/log/msgd": 0o755}
    assert grp.getgrnam("msgd").gr_mem == []
    assert Path("/proc/sys/net/unix/max_dgram_qlen").read_text() == "4096\n"


@check
def start() -> None:
    run("systemctl", "start", "msgd")
    assert run("systemctl", "is-active", "msgd", "msgd.socket") == "active\nactive"
    assert show("StatusText").startswith(f"0 clients; {main_pid()}/")


@check
def ping() -> None:
    assert run("msgcontrol", "msgd", "ping") == f"PONG from pid {main_pid()}"


@check
def tools_with_the_distribution_s_packages() -> None:
    assert str(main_pid()) in run("msgstatus")
    assert run("msgparm", "--parameter-name=listen") == "/run/msgd/msgd.sock"
    assert "systemd: yes" in run("msgd", "-b")
    assert "messaging daemon" in run("msgd", "--help")
    assert "ping" in run("msgbench", "--help")


@check
def the_sandbox_holds() -> None:
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{main_pid()}/status").read_text().splitlines())
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 1 << 5  # CAP_KILL
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert not os.access(f"/proc/{main_pid()}/root/etc", os.W_OK)
    assert show("OOMPolicy") == "continue"


@check
def reload_takes_new_settings() -> None:
    SMB_CONF.write_text("[global]\nlog level = 4\n")
    reload()
    assert run("msgcontrol", "msgd", "debuglevel").endswith("all:4 msgd:4")
    assert run("systemctl", "is-active", "msgd") == "active"


@check
def a_log_file_is_root_s_to_read() -> None:
    SMB_CONF.write_text(f"[global]\nlog level = 3\nlog file = {LOG}\n")
    reload()
    assert "reloaded" in LOG.read_text()
    assert LOG.stat().st_mode & 0o777 == 0o600
    SMB_CONF.write_text("[global]\nlog level = 3\n")
    reload()


@check
def who_connects_during_a_restart_is_served() -> None:
    """A client that comes every now and then finds an open door, though nobody but systemd is behind it."""
    before = main_pid()
    with subprocess.Popen(("systemctl", "restart", "msgd")) as restart:
        while restart.poll() is None:
            with connect() as client:
                client.ping()
        assert restart.returncode == 0
    assert main_pid() != before


@check
def stop_leaves_nothing_behind() -> None:
    pid = main_pid()
    stop()
    await_end(pid)
    assert {path.name for path in RUN.rglob("*") if not path.is_dir()} <= {"msgd.lock", "names.tdb"}
    assert show("Result") == "success"


@check
def socket_activation_from_stopped() -> None:
    run("systemctl", "start", "msgd.socket")
    assert status_of("systemctl", "is-active", "-q", "msgd") != 0
    clients.append(connect())
    assert run("systemctl", "is-active", "msgd") == "active"
    clients[0].ping(main_pid())


@check
def kill_9_is_survived() -> None:
    """The main process is started anew: who is connected goes on, and who connects is served."""
    killed, restarts = main_pid(), int(show("NRestarts"))
    os.kill(killed, signal.SIGKILL)
    clients.append(connect())
    assert main_pid() not in (0, killed)
    assert int(show("NRestarts")) == restarts + 1
    for client in clients:
        client.ping(main_pid())
    assert run("msgcontrol", "msgd", "num-children") == "2 children"


@check
def restart_leaves_clients_connected() -> None:
    before = main_pid()
    run("systemctl", "restart", "msgd")
    assert main_pid() != before
    for client in clients:
        client.ping(main_pid())
    assert run("msgcontrol", "msgd", "num-children") == "2 children"


@check
def a_hung_main_process_is_started_anew() -> str:
    DROP_IN.parent.mkdir(parents=True)
    DROP_IN.write_text(IMPATIENT)
    take_up()
    hung, restarts = main_pid(), int(show("NRestarts"))
    os.kill(hung, signal.SIGSTOP)
    began = time.monotonic()
    with connect() as client:  # it is not patient for ever
        took = time.monotonic() - began
        client.ping()
    assert main_pid() != hung
    assert int(show("NRestarts")) > restarts
    DROP_IN.unlink()
    take_up()
    for other in clients:
        other.ping()
    return f"{took:.1f} seconds"


@check
def the_journal_has_the_fields() -> None:
    from msgd import events

    ready = journal(MESSAGE_ID=events.READY)
    assert all(entry["SYSLOG_IDENTIFIER"] == "msgd" and entry["SERVER_ID"] for entry in ready)
    assert len(ready) >= 4
    (connected, *_) = journal(MESSAGE_ID=events.CONNECTED, PEER_PID=os.getpid())
    assert (connected["PEER_UID"], connected["PRIORITY"]) == ("0", "6")
    assert run("msgcontrol", "msgd", "reload-config") == ""
    run("msgcontrol", "msgd", "debuglevel")
    asked = journal(MESSAGE_ID=events.RELOADED, MESSAGE_TYPE="SMB_CONF_UPDATED")
    assert int(asked[-1]["PEER_PID"]) > 0
    # The watchdog's SIGABRT has left a traceback that says where it hung.
    assert any("Fatal Python error: Aborted" in str(entry["MESSAGE"]) for entry in journal())


@check
def members_of_the_group_are_let_in() -> None:
    assert as_nobody() == "not-allowed"
    SMB_CONF.write_text("[global]\nlog level = 3\nmsgd:allow groups = msgd\n")
    reload()
    assert as_nobody() == "served"


def as_nobody() -> str:
    """What becomes of a client that is nobody, and in the group msgd."""
    reader, writer = os.pipe()
    group = grp.getgrnam("msgd").gr_gid
    child = os.fork()
    if child == 0:
        os.setgroups([group])
        os.setgid(65534)
        os.setuid(65534)
        try:
            with connect() as client:
                client.ping()
            os.write(writer, b"served")
        except Exception as error:  # noqa: BLE001  # it is told to the parent
            os.write(writer, b"not-allowed" if "not-allowed" in str(error) else repr(error).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@check
def stop_ends_the_clients_too() -> None:
    from msgd import events

    pids = [main_pid(), *(client.server_id.pid for client in clients)]
    stop()
    for client in clients:
        assert "(stopped): the service is stopped" in last_word_of(client)
        client.close()
    for pid in pids:
        await_end(pid)
    assert {path.name for path in RUN.rglob("*") if not path.is_dir()} <= {"msgd.lock", "names.tdb"}
    assert journal(MESSAGE_ID=events.DISCONNECTED)
    assert "SubState=dead" in run("systemctl", "show", "-p", "SubState", "msgd.service")


@check
def shutdown_is_no_failure() -> None:
    run("systemctl", "start", "msgd")
    pid = main_pid()
    run("msgcontrol", "msgd", "shutdown")
    await_end(pid)
    await_state("inactive")
    assert show("Result") == "success"


@check
def a_faulty_smb_conf_is_in_the_journal() -> None:
    SMB_CONF.write_text("[global]\nmsgd:max message size = loud\n")
    assert status_of("systemctl", "start", "msgd") != 0
    assert any("msgd:max message size = loud" in str(entry["MESSAGE"]) for entry in journal())
    stop()
    SMB_CONF.write_text("[global]\n")


@check
def an_instance_for_another_directory() -> None:
    configuration = SMB_CONF.with_name("blue.conf")
    configuration.write_text("[global]\nlock directory = /run/msgd-blue\npid directory = /run/msgd-blue\n")
    run("systemctl", "start", "msgd@blue", "msgd")
    pid = int(run("systemctl", "show", "-P", "MainPID", "msgd@blue"))
    assert run("msgcontrol", "-s", str(configuration), "msgd", "ping") == f"PONG from pid {pid}"
    assert run("msgcontrol", "msgd", "ping") == f"PONG from pid {main_pid()}"
    assert Path("/run/msgd-blue").stat().st_mode & 0o777 == 0o755
    run("systemctl", "stop", "msgd@blue")
    await_end(pid)
    assert Path("/run/msgd-blue").is_dir()
    assert run("systemctl", "is-active", "msgd") == "active"
    stop()
    configuration.unlink()


@check
def make_uninstall() -> None:
    if DEBS:
        run("dpkg", "-P", "msgd", "msgd-bench", "python3-msgd")
    else:
        make_uninstall_from_the_tree()
    run("systemctl", "daemon-reload")
    assert show("LoadState") == "not-found" or show("FragmentPath") == ""


def make_uninstall_from_the_tree() -> None:
    manifest = json.loads(Path(PACKAGE, "manifest.json").read_text())
    run("make", "-C", TREE, "uninstall")
    assert not [path for path in manifest["files"] if os.path.lexists(path)]
    assert not Path(PACKAGE).exists()


@check
def without_systemd_python() -> None:
    """There is no socket unit, and the connection processes end with the main process, each with its last word."""
    if DEBS:  # they are made for systemd
        return
    run("make", "-C", TREE_WITHOUT_SYSTEMD, "install")
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "--now", "msgd")
    assert status_of("systemctl", "cat", "msgd.socket") != 0
    await_answer()
    with connect() as client:
        os.kill(main_pid(), signal.SIGKILL)
        assert "(stopped)" in last_word_of(client)
    await_answer()
    with connect() as client:
        pids = [main_pid(), client.server_id.pid]
        run("systemctl", "stop", "msgd")
        assert "(stopped)" in last_word_of(client)
    for pid in pids:
        await_end(pid)
    assert show("Result") == "success"
    run("systemctl", "disable", "msgd")
    run("make", "-C", TREE_WITHOUT_SYSTEMD, "uninstall")


def await_answer() -> None:
    """A main process that cannot say so is ready when it answers."""
    deadline = time.monotonic() + PATIENCE
    while status_of("msgcontrol", "msgd", "ping") != 0:
        assert time.monotonic() < deadline, f"it is {show('ActiveState')}, and does not answer"
        time.sleep(0.05)


def await_state(wanted: str) -> None:
    """systemd notes the end of a process a moment after it."""
    deadline = time.monotonic() + PATIENCE
    while show("ActiveState") != wanted:
        assert time.monotonic() < deadline, f"it is {show('ActiveState')}, not {wanted}"
        time.sleep(0.05)


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
