# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgstatus shows real processes, as a table and as JSON, to any user who may read the directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msgd import MessageClass, Messaging, _registry
from msgd._registry import MESSAGING_MODULES
from tests.support.daemons import ENVIRONMENT, PATIENCE, Place, Running, one_line
from tests.support.harness import TEXT, Channel, Child, Peer, Session, dead_pid, take_data

NO_RICH = "import sys; sys.modules['rich'] = None; from msgd.tools.msgstatus.main import main; sys.exit(main())"
"""Runs msgstatus as if rich were not installed."""


@pytest.fixture
def peers(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Peer, Peer]]:
    """A live process that has names, and a dead one; both run `worker.py`, whatever runs the tests."""
    monkeypatch.setattr(sys, "argv", ["/srv/worker.py"])
    with Peer(place.config) as alive, Peer(place.config, listens=MessageClass.PRINT) as dead:
        alive.call(give_names, "scanners", "printers")
        dead.call(give_names, "printers")
        dead.kill()
        yield alive, dead


def give_names(session: Session, *names: str) -> None:
    for name in names:
        session.messaging.add_name(name)


def status(place: Place, *arguments: str) -> str:
    """Run a msgstatus that must succeed with nothing on stderr, and return its output."""
    done = place.run("msgd.tools.msgstatus", "-s", str(place.smb_conf), *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def rows(place: Place) -> dict[int, dict[str, Any]]:
    """The rows of --json, by pid."""
    printed = json.loads(status(place, "--json"))
    assert printed["directory"] == place.config.lock_directory
    assert printed["notes"] == []
    return {row["pid"]: row for row in printed["processes"]}


def test_json(place: Place, peers: tuple[Peer, Peer]) -> None:
    alive, dead = peers
    found = rows(place)
    assert list(found) == sorted((alive.pid, dead.pid))
    row = found[alive.pid]
    assert 0 <= time.time() - row.pop("since") < 3600
    assert row == {
        "command": "worker.py",
        "server_id": str(alive.server_id),
        "pid": alive.pid,
        "unique_id": alive.server_id.unique_id,
        "uid": os.geteuid(),
        "names": ["printers", "scanners"],
        "classes": ["GENERAL", "NMBD", "PRINT", "SMBD", "WINBIND"],
        "type": "dgram",
        "queue": None,
        "state": "alive",
        "kind": "msgd",
        "hung": None,
        "waits_in": None,
        "node": None,
    }
    row = found[dead.pid]
    assert (row["state"], row["classes"], row["names"]) == ("dead", ["PRINT"], [])
    assert row["unique_id"] == dead.server_id.unique_id


def test_names(place: Place, peers: tuple[Peer, Peer]) -> None:
    assert status(place, "--names") == "printers\nscanners\n"


def test_table(place: Place, peers: tuple[Peer, Peer]) -> None:
    """Output to a pipe or a file has aligned columns."""
    alive, dead = peers
    heading, *lines = status(place, "--wide").splitlines()
    assert re.split(r"  +", heading.strip()) == [
        *("PID", "UNIQUE ID", "UID", "KIND", "COMMAND", "NAMES", "LISTENS", "TYPE", "QUEUE", "HUNG", "WAITS IN"),
        *("SINCE", "STATE"),
    ]
    shown = {int(line.split()[0]): line for line in lines}
    assert shown.keys() == {alive.pid, dead.pid}
    assert "  printers scanners  all  " in shown[alive.pid]
    assert shown[alive.pid].endswith("  alive")
    assert shown[dead.pid].endswith("  dead")
    assert {line.index("dgram") for line in lines} == {heading.index("TYPE")}


def test_the_table_fits_80_columns(place: Place, peers: tuple[Peer, Peer]) -> None:
    """Long names and commands are cut; the unique id and what is the same for all is left out."""
    alive, dead = peers
    alive.call(give_names, "a-service-with-a-long-name")
    with Child(lambda channel: boast(Path(place.config.lock_directory, "msg.lock"), channel)) as boaster:
        assert boaster.hear() == "locked"
        heading, *lines = status(place).splitlines()
        assert heading.split() == ["PID", "KIND", "COMMAND", "NAMES", "QUEUE", "HUNG", "SINCE", "STATE"]
        shown = {int(line.split()[0]): line for line in lines}
        assert shown.keys() == {alive.pid, dead.pid, boaster.pid}
        assert max(map(len, (heading, *lines))) <= 80
        assert " a-service-+ " in shown[alive.pid]
        assert re.search(r" \d\d:\d\d:\d\d +alive$", shown[alive.pid])
        assert " cccccccccccc+ " in shown[boaster.pid]
        for line in on_terminal(place, columns=80).splitlines():
            assert len(re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()) <= 80


def boast(directory: Path, channel: Channel) -> None:
    """A process with the longest of everything."""
    with (directory / str(os.getpid())).open("wb", buffering=0) as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        file.write(
            b"18446744073709551614\nclasses SMBD\nsince 999999999999999\ntype dgram\ncommand " + b"c" * 64 + b"\n"
        )
        channel.send("locked")
        channel.recv()


def test_a_process_of_sambas(place: Place, peers: tuple[Peer, Peer]) -> None:
    directory = Path(place.config.lock_directory, "msg.lock")

    def be_samba(channel: Channel) -> None:
        with (directory / str(os.getpid())).open("wb", buffering=0) as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            file.write(b"42\n")
            channel.send("locked")
            channel.recv()

    with Child(be_samba) as samba:
        assert samba.hear() == "locked"
        found = rows(place)
        assert {found[pid]["kind"] for pid in (peers[0].pid, peers[1].pid)} == {"msgd"}
        assert (found[samba.pid]["kind"], found[samba.pid]["state"]) == ("samba", "alive")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a pid namespace")
def test_a_process_of_another_pid_namespace_is_not_dead(place: Place, peers: tuple[Peer, Peer]) -> None:
    program = (
        "import sys; from msgd import Config, Messaging; messaging = Messaging(Config.load(sys.argv[1]));"
        " print('it is here', flush=True); sys.stdin.read()"
    )
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", program, str(place.smb_conf)]
    inside = place.keep(Running(command))
    inside.await_line("it is here")
    found = rows(place)[1]
    assert found["state"] == "elsewhere"
    assert found["command"] is not None
    inside.signal(signal.SIGKILL)
    inside.wait()


@pytest.mark.parametrize("kind", ["dgram", "stream", "tdb"])
def test_a_process_that_takes_no_messages_is_hung(place: Place, kind: str) -> None:
    if all(module.name != kind for module in MESSAGING_MODULES):
        pytest.skip(f"messaging module {kind} is not compiled in")
    place.configure(f"messaging type = {kind}")
    config = place.config.replace(messaging_type=kind)
    with Peer(config) as stopped, Peer(config) as idle, Messaging(config) as messaging:
        stopped.stop()
        messaging.send(stopped.pid, TEXT, b"are you there?")
        found = json.loads(status(place, "--json", "--hung", "0.2"))["processes"]
        row = next(row for row in found if row["pid"] == stopped.pid)
        assert row["hung"] >= 0.2
        assert row["waits_in"] == "stopped"
        assert next(row for row in found if row["pid"] == idle.pid)["hung"] is None
        assert re.search(rf"^ *{stopped.pid} .* \d+s .* alive$", status(place, "--hung", "0.2"), re.MULTILINE)
        stopped.resume()
        assert stopped.call(take_data, 1) == [b"are you there?"]
        assert {row["hung"] for row in rows(place).values()} == {None}


def test_lists_the_daemon_but_not_itself(place: Place) -> None:
    msgd = place.msgd()
    (row,) = rows(place).values()
    assert (row["pid"], row["names"], row["command"]) == (msgd.pid, ["msgd"], "daemon")
    assert place.files() == {"msgd.pid", "msgd.sock", str(msgd.pid)}


def test_empty_directory(place: Place) -> None:
    with Messaging(place.config):
        pass
    assert status(place) == f"no processes in {place.config.lock_directory}\n"
    assert rows(place) == {}


def test_missing_directory(place: Place) -> None:
    for arguments in ((), ("--json",)):
        failed = place.run("msgd.tools.msgstatus", "-s", str(place.smb_conf), *arguments)
        assert failed.returncode == 1
        assert one_line(failed) == f"msgstatus: {place.config.lock_directory}: No such file or directory"
    assert not Path(place.config.lock_directory).exists()


def test_unsafe_directory(place: Place, peers: tuple[Peer, Peer]) -> None:
    Path(place.config.lock_directory).chmod(0o777)
    failed = place.run("msgd.tools.msgstatus", "-s", str(place.smb_conf))
    assert failed.returncode == 1
    assert "has mode 0777" in one_line(failed)


@pytest.mark.skipif(
    all(module.name != "tdb" for module in MESSAGING_MODULES), reason="needs messaging module tdb: configure with it"
)
def test_queue(place: Place) -> None:
    place.configure("messaging type = tdb")
    config = place.config.replace(messaging_type="tdb")
    with Peer(config) as peer, Child(lambda channel: send_some(config, peer.pid, channel)) as sender:
        assert sender.hear() == "sent"
        row = rows(place)[peer.pid]
        assert (row["type"], row["queue"]) == ("tdb", 1234)
        assert rows(place)[sender.pid]["queue"] == 0


def send_some(config: Any, pid: int, channel: Channel) -> None:
    with Messaging(config) as messaging:
        for _ in range(1234):
            messaging.send(pid, TEXT, bytes(100))
        channel.send("sent")
        channel.recv()


def test_unprivileged_user(place: Place, peers: tuple[Peer, Peer]) -> None:
    """A user who may read the directory sees its processes; what the user may not read is blank, with the reason."""
    if os.geteuid() != 0:
        pytest.skip("needs root to change the user: run the tests as root")
    place.directory.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "msgd.tools.msgstatus", "-s", str(place.smb_conf), "--wide"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=PATIENCE,
        check=True,
        user=65534,
        group=65534,
        extra_groups=[],
    )
    shown = {int(line.split()[0]): line.split() for line in done.stdout.splitlines()[1:]}
    assert shown.keys() == {peer.pid for peer in peers}
    if any(module.name == "tdb" for module in MESSAGING_MODULES):
        assert shown[peers[0].pid][5:7] == ["-", "all"]
        assert done.stderr == f"msgstatus: {place.config.lock_directory}/names.tdb: Permission denied\n"
    else:
        assert shown[peers[0].pid][5:7] == ["printers", "scanners"]


def lie(path: Path, channel: Channel) -> None:
    """A process that describes itself with control characters, to confuse a terminal."""
    with path.open("wb", buffering=0) as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        file.write(b"42\nclasses SMBD\nsince 99999999999999\ntype \x1b[2J\ncommand [red]\x1b]0;\x07\xff\n")
        channel.send("locked")
        channel.recv()


def test_control_characters_of_a_peer(place: Place, peers: tuple[Peer, Peer]) -> None:
    """Control characters reach the terminal only as printable characters."""
    directory = Path(place.config.lock_directory, "msg.lock")
    (directory / str(dead_pid())).write_text("rubbish")
    with Child(lambda channel: lie(directory / str(os.getpid()), channel)) as liar:
        assert liar.hear() == "locked"
        for shown in (status(place, "--wide"), on_terminal(place, "--wide")):
            line = next(line for line in shown.splitlines() if line.startswith(str(liar.pid)))
            assert "[red]?]0;?" in line
            assert "?[2J" in line


# On a terminal


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, command: list[str], columns: int = 200) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        environment = ENVIRONMENT | {"TERM": "xterm", "COLUMNS": str(columns)}
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self._fd = ours
        self.shown = ""

    def await_text(self, wanted: str) -> None:
        """Read until `wanted` appears in new output."""
        before = len(self.shown)
        while wanted not in self.shown[before:]:
            assert select.select([self._fd], [], [], PATIENCE)[0], f"{wanted!r} is not shown: {self.shown}"
            self.shown += self._read()

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def interrupt(self) -> int:
        """Type Ctrl-C, and return the exit status."""
        self._process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Read to the end, and return the exit status."""
        with contextlib.suppress(OSError):  # EIO: the program has closed the terminal
            while text := self._read():
                self.shown += text
        os.close(self._fd)
        return self._process.wait(PATIENCE)

    def _read(self) -> str:
        return os.read(self._fd, 1 << 16).decode(errors="replace").replace("\r\n", "\n")


def terminal(
    place: Place, *arguments: str, program: tuple[str, ...] = ("-m", "msgd.tools.msgstatus"), columns: int = 200
) -> Terminal:
    return Terminal([sys.executable, *program, "-s", str(place.smb_conf), *arguments], columns)


def on_terminal(place: Place, *arguments: str, columns: int = 200) -> str:
    running = terminal(place, *arguments, columns=columns)
    assert running.wait() == 0
    return running.shown


def test_terminal(place: Place, peers: tuple[Peer, Peer]) -> None:
    shown = on_terminal(place, "--wide")
    assert "\x1b[1m" in shown, "the headings are bold"
    assert re.search(rf"^{peers[0].pid} .* printers scanners +all +dgram .* alive *$", shown, re.MULTILINE)


def test_terminal_without_rich(place: Place, peers: tuple[Peer, Peer]) -> None:
    running = terminal(place, program=("-c", NO_RICH))
    assert running.wait() == 0
    assert running.shown == status(place)


def test_watch(place: Place) -> None:
    """A process appears and dies while it is watched; Ctrl-C ends the watch."""
    with Peer(place.config) as first:
        watching = terminal(place, "--watch", "0.05")
        watching.await_text(str(first.pid))
        with Peer(place.config) as second:
            watching.await_text(str(second.pid))
            second.kill()
            watching.await_text("dead")
    assert watching.interrupt() == 0


def test_watch_has_a_title_and_a_clock_and_ends_with_q(place: Place, peers: tuple[Peer, Peer]) -> None:
    watching = terminal(place, "--watch", "60")
    watching.await_text("q: quit")
    assert re.search(rf"{place.config.lock_directory} \(dgram\): 1 alive   \d\d:\d\d:\d\d", watching.shown)
    watching.type(b"xq")
    assert watching.wait() == 0
    assert "xq" not in watching.shown


def test_watch_needs_a_terminal_and_rich(place: Place, peers: tuple[Peer, Peer]) -> None:
    failed = place.run("msgd.tools.msgstatus", "-s", str(place.smb_conf), "--watch")
    assert failed.returncode == 1
    assert one_line(failed).startswith("msgstatus: --watch needs a terminal")
    running = terminal(place, "--watch", program=("-c", NO_RICH))
    assert running.wait() == 1
    assert running.shown.startswith("msgstatus: --watch needs Python's rich: install python3-rich")


# Usage


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--json", "--watch"], "not allowed with argument"),
        (["--watch", "0"], "'0' is not a number of seconds above 0"),
        (["--watch", "often"], "'often' is not a number"),
        (["somebody"], "unrecognized arguments: somebody"),
    ],
)
def test_wrong_usage(place: Place, arguments: list[str], complaint: str) -> None:
    failed = place.run("msgd.tools.msgstatus", *arguments)
    assert failed.returncode == 2
    assert complaint in one_line(failed)
    assert failed.stderr.endswith("(see msgstatus --help)\n")


def test_help_and_version(place: Place) -> None:
    text = status(place, "--help")
    for word in ("--watch [SECONDS]", "--json", "QUEUE", "examples:", "Exit status"):
        assert word in text
    assert status(place, "-V") == f"Version {_registry.VERSION}\n"
