# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgcontrol: every command, destination and error message; the wait ends when nothing is outstanding."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from msgd import _registry
from msgd.errors import NoSuchProcess
from msgd.messaging import Messaging
from msgd.tools.msgcontrol.commands import COMMANDS
from msgd.wire.message_types import MessageType
from tests.support.daemons import ENVIRONMENT, PATIENCE, Place, one_line


def control(place: Place, *arguments: str) -> str:
    """Run a msgcontrol that must succeed with nothing on stderr, and return its output."""
    done = place.msgcontrol(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(place: Place, status: int, *arguments: str) -> str:
    """Run a msgcontrol that must fail, and return its error message."""
    failed = place.msgcontrol(*arguments)
    assert failed.returncode == status
    line = one_line(failed)
    assert line.startswith("msgcontrol: ")
    return line.removeprefix("msgcontrol: ")


# Commands


def test_ping(place: Place) -> None:
    msgd = place.msgd()
    for destination in ("msgd", str(msgd.pid), f"{msgd.pid}.0", "all"):
        assert control(place, destination, "ping") == f"PONG from pid {msgd.pid}\n"


def test_debug_and_debuglevel(place: Place) -> None:
    msgd = place.msgd()
    assert control(place, "msgd", "debuglevel") == f"PID {msgd.pid}: all:3 msgd:3\n"
    assert control(place, "msgd", "debug", "all:4 msgd:6") == ""
    assert control(place, "msgd", "debuglevel") == f"PID {msgd.pid}: all:4 msgd:6\n"


def test_debug_ends_its_text_with_nul_like_samba(place: Place) -> None:
    seen: list[bytes] = []
    with Messaging(place.config) as messaging:
        messaging.register(MessageType.DEBUG, lambda message: seen.append(message.data))
        assert control(place, str(messaging.server_id), "debug", "smb:10") == ""
        messaging.dispatch(PATIENCE)
    assert seen == [b"smb:10\0"]


def test_reload_config(place: Place) -> None:
    msgd = place.msgd()
    place.configure("log level = 5")
    assert control(place, "msgd", "reload-config") == ""
    assert control(place, "msgd", "debuglevel") == f"PID {msgd.pid}: all:5 msgd:5\n"


def test_shutdown(place: Place) -> None:
    msgd = place.msgd()
    assert control(place, "msgd", "shutdown") == ""
    assert msgd.wait() == 0


# Destinations


def test_all_ends_when_every_process_has_answered(place: Place) -> None:
    processes = [place.msgd(), *(place.worker() for _ in range(3))]
    answers = control(place, "-t", str(10 * PATIENCE), "all", "ping")
    assert sorted(answers.splitlines()) == sorted(f"PONG from pid {process.pid}" for process in processes)


def test_all_does_not_wait_for_processes_that_die(place: Place) -> None:
    msgd, worker = place.msgd(), place.worker()
    worker.stop()
    arguments = ["-s", str(place.smb_conf), "-t", str(10 * PATIENCE), "all", "ping"]
    waiting = place.start("msgd.tools.msgcontrol", *arguments)
    waiting.await_line(f"PONG from pid {msgd.pid}")
    worker.signal(signal.SIGKILL)
    assert waiting.wait() == 0
    assert waiting.output == f"PONG from pid {msgd.pid}\n"


def test_single_destination_that_dies_is_a_fault(place: Place) -> None:
    worker = place.worker()
    worker.stop()
    waiting = place.start(
        "msgd.tools.msgcontrol", "-s", str(place.smb_conf), "-t", str(10 * PATIENCE), str(worker.pid), "ping"
    )
    _await_answer(place, waiting.pid)  # msgcontrol answers while it waits
    worker.signal(signal.SIGKILL)
    assert waiting.wait() == 1
    assert waiting.output.startswith(f"msgcontrol: no process {worker.pid} in {place.config.lock_directory}")


def _await_answer(place: Place, pid: int) -> None:
    """Wait until a starting process has answered a PING.  The test's time limit bounds the wait."""
    with Messaging(place.config) as messaging:
        while True:
            try:
                messaging.request(pid, MessageType.PING, b"", MessageType.PONG, PATIENCE)
                return
            except NoSuchProcess:  # it has not joined yet
                os.sched_yield()


def test_all_lists_processes_that_do_not_answer(place: Place) -> None:
    msgd, worker = place.msgd(), place.worker()
    worker.stop()
    failed = place.msgcontrol("-t", "5", "all", "ping")  # long enough for msgd to answer on a busy machine
    assert failed.returncode == 1
    assert failed.stdout == f"PONG from pid {msgd.pid}\n"
    assert re.fullmatch(rf"msgcontrol: no answer from {worker.pid}/\d+ within 5 seconds; .*\n", failed.stderr)


def test_answer_that_has_arrived_at_the_deadline_counts(place: Place) -> None:
    assert re.fullmatch(r"PONG from pid \d+\n", control(place, "-t", "0.000001", "self", "ping"))


def test_receiver_without_room_for_the_message(place: Place) -> None:
    worker = place.worker()
    with Messaging(place.config.replace(close_timeout=0)) as messaging:
        worker.stop()
        while not messaging.statistics().queued_messages:  # the kernel queues a few messages
            messaging.send(worker.pid, MessageType.PING)
        line = refused(place, 1, "-t", "0.3", str(worker.pid), "shutdown")
        assert line.startswith(f"no room for a message at {worker.pid} within 0.3 seconds")
        waiting = place.start("msgd.tools.msgcontrol", "-s", str(place.smb_conf), str(worker.pid), "shutdown")
        worker.signal(signal.SIGCONT)
        assert waiting.wait() == 0
        assert waiting.output == ""
        assert worker.wait() == 0


def test_all_without_other_processes(place: Place) -> None:
    assert refused(place, 1, "all", "ping").startswith(
        f"no other process is in {place.config.lock_directory}; start msgd"
    )


def test_self(place: Place) -> None:
    assert re.fullmatch(r"PONG from pid \d+\n", control(place, "self", "ping"))
    assert re.fullmatch(r"PID \d+: all:0 msgd:0\n", control(place, "self", "debuglevel"))
    assert control(place, "self", "debug", "3") == ""


def test_another_context_of_a_process(place: Place) -> None:
    program = (
        "import sys; from msgd import Config, Messaging; config = Config.load(sys.argv[1])\n"
        "with Messaging(config), Messaging(config) as second:\n"
        "    print('ready', flush=True)\n"
        "    while second.dispatch(None) >= 0: pass\n"
    )
    command = [sys.executable, "-c", program, str(place.smb_conf)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for task, shown in (("", ""), (".0", ""), (".1", ".1")):  # as smbcontrol shows them
            assert control(place, f"{process.pid}{task}", "ping") == f"PONG from pid {process.pid}{shown}\n"
        assert "its pid lives and has no such task" in refused(place, 1, f"{process.pid}.2", "ping")
        process.kill()


def test_name(place: Place) -> None:
    """A name stands for every process that has it; a daemon's pid file takes precedence."""
    msgd = place.msgd()
    with Messaging(place.config) as messaging:
        assert [server_id.pid for server_id in messaging.lookup("msgd")] == [msgd.pid]
        messaging.add_name("msgd")
        messaging.add_name("printers")
        assert control(place, "msgd", "ping") == f"PONG from pid {msgd.pid}\n"
        asking = place.start("msgd.tools.msgcontrol", "-s", str(place.smb_conf), "printers", "ping")
        messaging.dispatch(PATIENCE)
        assert asking.wait() == 0
        assert asking.output == f"PONG from pid {os.getpid()}\n"
    assert refused(place, 1, "printers", "ping").startswith("printers is not running")


def test_unique_id_that_matches_no_process(place: Place) -> None:
    msgd = place.msgd()
    assert refused(place, 1, f"{msgd.pid}/12345", "ping").startswith(f"no process {msgd.pid}/12345 in ")


@pytest.mark.parametrize("name", ["msgd", "smbd", "nmbd", "winbindd", "somed"])
def test_daemon_that_is_not_running(place: Place, name: str) -> None:
    line = refused(place, 1, name, "ping")
    assert line.startswith(f"{name} is not running: no process holds {place.directory}/pid/{name}.pid, none in ")
    assert f"{place.config.lock_directory} has that name; start it" in line


@pytest.mark.parametrize("destination", ["msgd", "all", "4711", "printers"])
def test_directory_that_does_not_exist(place: Place, destination: str) -> None:
    """It is told as such, and not made."""
    assert place.config.lock_directory in refused(place, 1, destination, "ping")
    assert not os.path.exists(place.config.lock_directory)


def test_killed_daemon_is_not_running(place: Place) -> None:
    msgd = place.msgd()
    msgd.signal(signal.SIGKILL)
    msgd.wait()
    assert place.pid_file.exists()
    assert refused(place, 1, "msgd", "ping").startswith("msgd is not running")
    assert refused(place, 1, str(msgd.pid), "ping").startswith(f"no process {msgd.pid} in ")
    assert refused(place, 1, "all", "ping").startswith("no other process")


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required: DESTINATION, COMMAND"),
        (["msgd"], "required: COMMAND"),
        (["msgd", "pign"], "no command 'pign'; did you mean ping?"),
        (["msgd", "reload"], "no command 'reload'; did you mean reload-config?"),
        (["msgd", "zzz"], "the commands are ping, debug,"),
        (["msgd", "debug"], "debug takes LEVEL, not nothing"),
        (["msgd", "debug", "1", "2"], "debug takes LEVEL, not 1 2"),
        (["msgd", "ping", "x"], "ping takes no arguments, not x"),
        (["msgd", "debug", "loud"], "debug loud: not a log level"),
        (["", "ping"], "is not a server id"),
        (["0", "ping"], "pid 0 is not a process id"),
        (["12x", "ping"], "'12x' is not a server id"),
        (["../smbd", "ping"], "'../smbd' is not a server id"),
        (["-t", "soon", "msgd", "ping"], "'soon' is not a number of seconds above 0"),
        (["-t", "0", "msgd", "ping"], "'0' is not a number of seconds above 0"),
        (["-t", "nan", "msgd", "ping"], "'nan' is not a number of seconds above 0"),
        (["--wait", "msgd", "ping"], "unrecognized arguments: --wait"),
    ],
)
def test_wrong_usage(place: Place, arguments: list[str], complaint: str) -> None:
    line = refused(place, 2, *arguments)
    assert complaint in line
    assert line.endswith("(see msgcontrol --help)")


def test_help_has_every_command(place: Place) -> None:
    text = control(place, "--help")
    for command in COMMANDS:
        assert re.search(rf"^  {command.usage} +{re.escape(command.help)}$", text, re.MULTILINE)
    for word in ("self", "all", "msgd, smbd, nmbd, winbindd", "examples:", "Exit status"):
        assert word in text


def test_version(place: Place) -> None:
    assert control(place, "-V") == f"Version {_registry.VERSION}\n"


def test_unreadable_configuration(place: Place) -> None:
    place.smb_conf.unlink()
    assert refused(place, 1, "msgd", "ping").startswith(f"{place.smb_conf}: ")
    place.configure("msgd:nonsense = 1")
    assert refused(place, 1, "msgd", "ping").startswith(f"{place.smb_conf}:5: ")


def test_unsafe_directory(place: Place) -> None:
    (place.directory / "lock").mkdir()
    (place.directory / "lock").chmod(0o777)
    assert "has mode 0777" in refused(place, 1, "all", "ping")


# Output and signals


def test_json(place: Place) -> None:
    msgd = place.msgd()
    printed = json.loads(control(place, "--json", "msgd", "debuglevel"))
    assert printed["command"] == "debuglevel"
    assert printed["delivered"] == [str(msgd.pid)]
    (answer,) = printed["answers"]
    assert (answer["pid"], answer["type"], answer["text"]) == (msgd.pid, "DEBUGLEVEL", "all:3 msgd:3")
    assert answer["server_id"].startswith(f"{msgd.pid}/")
    assert (printed["gone"], printed["late"], printed["failures"]) == ([], [], {})
    failed = place.msgcontrol("--json", "--", "77777777", "ping")
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["gone"] == ["77777777"]


def test_control_characters_of_a_peer_do_not_reach_the_terminal(place: Place) -> None:
    with Messaging(place.config) as messaging:
        messaging.register(
            MessageType.REQ_DEBUGLEVEL,
            lambda message: messaging.reply(message, MessageType.DEBUGLEVEL, b"\033[2Jall:1\nPONG\n\0"),
        )
        running = place.start("msgd.tools.msgcontrol", "-s", str(place.smb_conf), str(os.getpid()), "debuglevel")
        messaging.dispatch(PATIENCE)
        assert running.wait() == 0
    assert running.output == f"PID {os.getpid()}: ?[2Jall:1?PONG\n"


def test_interrupted(place: Place) -> None:
    msgd, worker = place.msgd(), place.worker()
    worker.stop()
    waiting = place.start("msgd.tools.msgcontrol", "-s", str(place.smb_conf), "all", "ping")
    waiting.await_line(f"PONG from pid {msgd.pid}")
    waiting.signal(signal.SIGINT)
    assert waiting.wait() == 130
    assert waiting.output == f"PONG from pid {msgd.pid}\n"
    assert place.files() == {"msgd.pid", "msgd.sock", str(msgd.pid), str(worker.pid)}


@pytest.mark.parametrize("arguments", [["msgd", "ping"], ["--json", "msgd", "ping"], ["--help"]])
def test_closed_pipe_as_stdout(place: Place, arguments: list[str]) -> None:
    place.msgd()
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.closing(os.fdopen(writer, "wb")) as pipe:
        done = _run_into(place, pipe.fileno(), arguments)
    assert (done.returncode, done.stderr) == (1, b"")


def test_full_disk_as_stdout(place: Place) -> None:
    place.msgd()
    with open("/dev/full", "wb") as full:
        done = _run_into(place, full.fileno(), ["msgd", "ping"])
    assert (done.returncode, done.stderr) == (1, b"msgcontrol: stdout: No space left on device\n")


def _run_into(place: Place, stdout: int, arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "msgd.tools.msgcontrol", "-s", str(place.smb_conf), *arguments]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=PATIENCE, check=False
    )


def test_leaves_no_files(place: Place) -> None:
    msgd = place.msgd()
    control(place, "all", "ping")
    refused(place, 1, "77777777", "ping")
    assert place.files() == {"msgd.pid", "msgd.sock", str(msgd.pid)}


# Samba's common options


def test_common_options_of_samba(place: Place) -> None:
    """They are taken before, between and behind the words, as smbcontrol takes them."""
    msgd = place.msgd()
    pong = f"PONG from pid {msgd.pid}\n"
    for arguments in (
        ["msgd", "ping", "-t", "5"],
        ["-d", "0", "msgd", "--debug-stdout", "ping", "--leak-report"],
        ["--debuglevel=1", "-l", str(place.directory), "msgd", "ping", "--leak-report-full"],
        ["--option=log level=3", "--option", "workgroup = TEST", "msgd", "ping"],
    ):
        assert control(place, *arguments) == pong
    assert (place.directory / "log.msgcontrol").exists()
    assert control(place, "--usage").startswith("usage: msgcontrol [OPTION...] DESTINATION COMMAND")
    assert control(place, "-?") == control(place, "--help")


def test_option_sets_a_parameter(place: Place) -> None:
    place.msgd()
    line = refused(place, 1, "--option", f"lock directory={place.directory}/elsewhere", "all", "ping")
    assert line.startswith(f"no other process is in {place.directory}/elsewhere")
    assert "'workgroup' is not NAME=VALUE" in refused(place, 2, "--option", "workgroup", "msgd", "ping")


def test_commands_and_destinations_ignore_case(place: Place) -> None:
    msgd = place.msgd()
    for destination in ("MSGD", "All"):
        assert control(place, destination, "PiNg") == f"PONG from pid {msgd.pid}\n"
    with Messaging(place.config) as messaging:
        messaging.add_name("Printers")
        asking = place.start("msgd.tools.msgcontrol", "-s", str(place.smb_conf), "pRINTERS", "PING")
        messaging.dispatch(PATIENCE)
        assert asking.wait() == 0
        assert asking.output == f"PONG from pid {os.getpid()}\n"


@pytest.mark.parametrize("command", ["stacktrace", "printnotify", "nodestatus"])
def test_commands_that_smbcontrol_has(place: Place, command: str) -> None:
    assert f"msgcontrol has no {command}; smbcontrol has it" in refused(place, 2, "msgd", command)
