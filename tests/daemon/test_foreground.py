# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd in the foreground: control messages, signals, reload, clean-up, and a second one refused."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from msgd.messaging import Messaging
from msgd.wire.message_types import MessageType
from tests.support.daemons import PATIENCE, Place, one_line


def test_answers_ping_with_the_payload(place: Place) -> None:
    msgd = place.msgd()
    with Messaging(place.config) as messaging:
        for payload in (b"", b"1234567890\0", bytes(range(256)) * 40):
            answer = messaging.request(msgd.pid, MessageType.PING, payload, MessageType.PONG, PATIENCE)
            assert answer.data == payload
            assert answer.src.pid == msgd.pid


def test_tells_its_debug_levels_as_samba_does(place: Place) -> None:
    assert place.debuglevel(place.msgd().pid) == b"all:3 msgd:3\n\0"


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        (b"5\0", b"all:5 msgd:5"),
        (b"5", b"all:5 msgd:5"),
        (b"all:4 msgd:6\0", b"all:4 msgd:6"),
        (b"msgd:7\0", b"all:3 msgd:7"),
        (b"all:2\0", b"all:2 msgd:2"),
        (b"smb:10\0", b"all:3 msgd:3"),
        (b"1 smb:10@/var/log/x\0", b"all:1 msgd:1"),
    ],
)
def test_debug_sets_levels(place: Place, text: bytes, levels: bytes) -> None:
    msgd = place.msgd()
    place.send(msgd.pid, MessageType.DEBUG, text)
    assert place.debuglevel(msgd.pid) == levels + b"\n\0"


@pytest.mark.parametrize("text", [b"", b"\0", b"much\0", b"5 6\0", b"all:\0", b"99\0", b"\xff\xfe\n3\0", b"3" * 5000])
def test_malformed_debug_is_logged_and_changes_nothing(place: Place, text: bytes) -> None:
    msgd = place.msgd()
    place.send(msgd.pid, MessageType.DEBUG, text)
    assert place.debuglevel(msgd.pid) == b"all:3 msgd:3\n\0"
    assert "the debug levels stay" in msgd.await_line("DEBUG from")
    assert "Traceback" not in msgd.output


def test_level_of_the_log_follows(place: Place) -> None:
    msgd = place.msgd()
    place.send(msgd.pid, MessageType.DEBUG, b"0\0")
    place.send(msgd.pid, MessageType.SMB_CONF_UPDATED)
    place.send(msgd.pid, MessageType.DEBUG, b"nonsense\0")
    msgd.await_line("nonsense")
    assert "reloaded" not in msgd.output


def test_reload_takes_a_new_log_level(place: Place) -> None:
    msgd = place.msgd()
    place.configure("log level = 3 msgd:5")
    place.send(msgd.pid, MessageType.SMB_CONF_UPDATED)
    assert place.debuglevel(msgd.pid) == b"all:3 msgd:5\n\0"


def test_reload_leaves_what_debug_has_set_if_the_file_says_nothing_new(place: Place) -> None:
    msgd = place.msgd()
    place.send(msgd.pid, MessageType.DEBUG, b"4\0")
    place.send(msgd.pid, MessageType.SMB_CONF_UPDATED)
    assert place.debuglevel(msgd.pid) == b"all:4 msgd:4\n\0"


def test_command_line_level_outlives_a_reload(place: Place) -> None:
    msgd = place.msgd("-d", "4")
    place.configure("log level = 9")
    place.send(msgd.pid, MessageType.SMB_CONF_UPDATED)
    assert place.debuglevel(msgd.pid) == b"all:4 msgd:4\n\0"


def test_reload_of_a_broken_file_keeps_the_settings(place: Place) -> None:
    msgd = place.msgd()
    place.configure("log level = 5", "msgd:clean-up interval = often", "msgd:nonsense = 1")
    place.send(msgd.pid, MessageType.SMB_CONF_UPDATED)
    assert f"{place.smb_conf}:6: msgd:clean-up interval" in msgd.await_line("ERROR: reload")
    assert f"{place.smb_conf}:7:" in msgd.await_line("ERROR: reload")
    assert "ERROR: not reloaded: SMB_CONF_UPDATED from" in msgd.await_line("the settings stay as they were")
    assert place.debuglevel(msgd.pid) == b"all:3 msgd:3\n\0"
    place.smb_conf.unlink()
    msgd.signal(signal.SIGHUP)
    assert str(place.smb_conf) in msgd.await_line("ERROR: reload")
    msgd.await_line("not reloaded: SIGHUP")
    place.configure("log level = 5", "[]")
    msgd.signal(signal.SIGHUP)
    assert f"{place.smb_conf}:6: []" in msgd.await_line("ERROR: reload")
    msgd.await_line("not reloaded: SIGHUP")
    place.configure("log level = 5")
    msgd.signal(signal.SIGHUP)
    msgd.await_line("INFO: reloaded: SIGHUP")
    assert place.debuglevel(msgd.pid) == b"all:5 msgd:5\n\0"


def test_the_tools_reach_a_daemon_whose_file_has_become_worse(place: Place) -> None:
    place.configure("log level = 3", "messaging type = tdb")
    msgd = place.msgd()
    place.configure("log level = 5", "messaging type = telepathy", "msgd:close timeout = never")
    reload = place.run("msgd.tools.msgcontrol", "-s", str(place.smb_conf), "msgd", "reload-config")
    assert reload.returncode == 0
    warning, _ = reload.stderr.splitlines()
    assert warning.startswith(f"msgcontrol: warning: {place.smb_conf}:6: messaging type = telepathy: ")
    msgd.await_line("not reloaded: SMB_CONF_UPDATED")
    asked = place.run("msgd.tools.msgcontrol", "-s", str(place.smb_conf), "msgd", "debuglevel")
    assert (asked.returncode, "all:3 msgd:3" in asked.stdout) == (0, True)
    shown = place.run("msgd.tools.msgstatus", "-s", str(place.smb_conf))
    assert (shown.returncode, str(msgd.pid) in shown.stdout) == (0, True)


def test_what_is_wrong_in_a_line_of_sambas_is_logged_once(place: Place) -> None:
    place.configure("log level = 11", "include = /nowhere/%h", f"log file = {place.directory}", "nonsense")
    msgd = place.msgd()
    assert f"log file = {place.directory}: Is a directory; msgd logs here instead" in msgd.output
    for line, what in ((5, "log level = 11"), (6, "include = /nowhere/%h"), (8, "nonsense")):
        assert msgd.output.count(f"WARNING: {place.smb_conf}:{line}: {what}: ") == 1
    place.send(msgd.pid, MessageType.SMB_CONF_UPDATED)
    msgd.await_line("INFO: reloaded: SMB_CONF_UPDATED")
    assert msgd.output.count("WARNING") == 3


def test_a_question_after_a_signal_is_answered_by_one_that_has_obeyed_it(place: Place) -> None:
    """Even if it reads the question in the very dispatch in whose middle the signal has come."""
    msgd = place.msgd()
    answers: list[bytes] = []
    with Messaging(place.config) as messaging:
        messaging.register(MessageType.DEBUGLEVEL, lambda message: answers.append(message.data))
        with place.amid_a_dispatch(msgd.pid):
            place.configure("log level = 5")
            msgd.signal(signal.SIGHUP)
            messaging.send(msgd.pid, MessageType.REQ_DEBUGLEVEL)
        messaging.dispatch(PATIENCE)
    assert answers == [b"all:5 msgd:5\n\0"]


def test_reload_tells_what_waits_for_a_new_start(place: Place) -> None:
    msgd = place.msgd()
    place.configure("log level = 3", "msgd:close timeout = 1")
    for _ in range(2):  # as long as it is so, each reload says it
        place.send(msgd.pid, MessageType.SMB_CONF_UPDATED)
        assert "WARNING" in msgd.await_line("msgd:close timeout has changed")


def test_reload_into_a_log_file_that_cannot_be_opened(place: Place) -> None:
    msgd = place.msgd()
    place.configure("log level = 3", f"log file = {place.directory}")
    place.send(msgd.pid, MessageType.SMB_CONF_UPDATED)
    msgd.await_line("the log stays where it was")
    msgd.await_line("reloaded")


def test_reload_moves_the_log(place: Place) -> None:
    msgd = place.msgd()
    log = place.directory / "logs" / "log.msgd"
    place.configure("log level = 3", f"log file = {place.directory}/logs/log.%m")
    place.send(msgd.pid, MessageType.SMB_CONF_UPDATED)
    place.debuglevel(msgd.pid)
    assert "reloaded" in log.read_text()


def test_many_signals_at_once(place: Place) -> None:
    msgd = place.msgd()
    for _ in range(200):
        msgd.signal(signal.SIGHUP)
    msgd.signal(signal.SIGTERM)
    assert msgd.wait() == 0
    assert place.files() == set()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_stop(place: Place, signum: signal.Signals) -> None:
    msgd = place.msgd()
    assert place.files() == {"msgd.pid", "msgd.sock", str(msgd.pid)}
    msgd.signal(signum)
    assert msgd.wait() == 0
    assert f"stopping: {signum.name}" in msgd.output
    assert place.files() == set()


def test_shutdown_message(place: Place) -> None:
    msgd = place.msgd()
    place.send(msgd.pid, MessageType.SHUTDOWN)
    assert msgd.wait() == 0
    assert "stopping: SHUTDOWN from" in msgd.output
    assert place.files() == set()


def test_second_instance_is_refused(place: Place) -> None:
    msgd = place.msgd()
    for options in (["-F"], ["-D"], ["-i"]):
        refused = place.run_msgd(*options)
        assert refused.returncode == 1
        expected = f"msgd: msgd is running already, pid {msgd.pid}: it holds {place.pid_file}"
        assert one_line(refused) == expected
    assert place.pid_file.read_text() == f"{msgd.pid}\n"
    place.debuglevel(msgd.pid)


def test_what_a_killed_one_leaves_is_cleaned_by_the_next(place: Place) -> None:
    killed = place.msgd()
    killed.signal(signal.SIGKILL)
    killed.wait()
    assert place.files() == {"msgd.pid", "msgd.sock", str(killed.pid)}
    msgd = place.msgd()
    assert place.files() == {"msgd.pid", "msgd.sock", str(msgd.pid)}
    assert place.pid_file.read_text() == f"{msgd.pid}\n"


def test_clean_up_interval(place: Place) -> None:
    place.configure("log level = 3", "msgd:clean-up interval = 0.05")
    msgd = place.msgd()
    worker = place.worker()
    worker.signal(signal.SIGKILL)
    worker.wait()
    msgd.await_line(f"cleaned up after dead processes: {worker.pid}")
    assert place.files() == {"msgd.pid", "msgd.sock", str(msgd.pid)}


def test_clean_up_interval_is_obeyed_on_reload(place: Place) -> None:
    place.configure("log level = 3", "msgd:clean-up interval = 0")
    msgd = place.msgd()
    worker = place.worker()
    worker.signal(signal.SIGKILL)
    worker.wait()
    assert str(worker.pid) in place.files()
    place.configure("log level = 3", "msgd:clean-up interval = 0.05")
    msgd.signal(signal.SIGHUP)  # a message would come from a process that has cleaned up itself
    msgd.await_line(f"cleaned up after dead processes: {worker.pid}")


def test_interactive_logs_to_stdout_whatever_the_log_file(place: Place) -> None:
    log = place.directory / "log"
    place.configure("log level = 3", f"log file = {log}")
    msgd = place.start("msgd.daemon", "-i", "-s", str(place.smb_conf))
    msgd.await_line("is ready")
    msgd.signal(signal.SIGINT)
    assert msgd.wait() == 0
    assert not log.exists()


def test_names_that_cannot_be_kept_stop_nobody(place: Place) -> None:
    """It serves without its name, and says why."""
    with Messaging(place.config) as messaging:
        directory = Path(messaging.config.lock_directory)
        for name in ("names.tdb", "names"):
            (directory / name).symlink_to("nowhere")
        msgd = place.msgd()
        assert messaging.request(msgd.pid, MessageType.PING, b"", MessageType.PONG, PATIENCE).src.pid == msgd.pid
    msgd.signal(signal.SIGTERM)
    assert msgd.wait() == 0
    assert f"{directory}/names" in msgd.output
    assert "msgd goes on without its name" in msgd.output


def test_unsafe_directory_is_one_line(place: Place) -> None:
    (place.directory / "lock").mkdir()
    (place.directory / "lock").chmod(0o777)
    failed = place.run_msgd("-F")
    assert failed.returncode == 1
    assert one_line(failed).startswith(f"msgd: {place.directory}/lock has mode 0777")
    assert place.files() == set()


def test_log_file_that_cannot_be_opened_is_one_line(place: Place) -> None:
    failed = place.run_msgd("-F", "-l", str(place.smb_conf))
    assert failed.returncode == 1
    assert one_line(failed).startswith(f"msgd: log file = {place.smb_conf}/log.msgd: ")
