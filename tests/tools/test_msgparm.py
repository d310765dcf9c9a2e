# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgparm as a program and as a function: what it prints where, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from msgd import _registry
from msgd.config import PARAMETERS, Config, config
from msgd.tools import msgparm

SMB_CONF = """\
workgroup = HARBOUR
lockdir = /run/%%a
log level = 1 auth:5
msgd:max message size = 1048576
msgd:trusted users = root
[share]
path = /srv
"""


@pytest.fixture
def smb_conf(tmp_path: Path) -> str:
    path = tmp_path / "smb.conf"
    path.write_text(SMB_CONF)
    return str(path)


def test_prints_the_parameters_that_are_set(smb_conf: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert msgparm.main(["-s", smb_conf]) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        "[global]\n\tlock directory = /run/%%a\n\tlog level = 1 auth:5\n"
        "\tmsgd:max message size = 1M\n\tmsgd:trusted users = 0\n"
    )
    assert printed.err == f"Load smb config files from {smb_conf}\nLoaded services file OK.\n"


def test_verbose_output_is_a_complete_smb_conf(
    smb_conf: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert msgparm.main(["-v", "-s", smb_conf]) == 0
    printed = capsys.readouterr().out
    assert all(f"\t# {p.help}\n\t{p.name} =" in printed for p in PARAMETERS)
    copy = tmp_path / "copy.conf"
    copy.write_text(printed)
    assert Config.load(copy) == Config.load(smb_conf)
    assert all(is_set for _, _, is_set in Config.load(copy).items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lock directory", "/run/%a"),
        ("LockDir", "/run/%a"),
        ("debuglevel", "1 auth:5"),
        ("use mmap", "yes"),
        ("log file", ""),
        ("msgd:maxmessagesize", "1M"),
        ("max message size", "1M"),
        ("msgd:socket directory", "/run/%a/msg.sock"),
    ],
)
def test_single_value_is_printed_without_its_name(
    smb_conf: str, name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert msgparm.main(["-s", smb_conf, f"--parameter-name={name}"]) == 0
    assert capsys.readouterr() == (f"{value}\n", "")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lock directry", "did you mean lock directory?"), ("workgroup", "msgparm -v lists them all")],
)
def test_an_unknown_name(smb_conf: str, name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert msgparm.main(["-s", smb_conf, "--parameter-name", name]) == 1
    assert capsys.readouterr() == ("", f"msgparm: {name}: no such parameter; {hint}\n")


def test_json(smb_conf: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert msgparm.main(["-s", smb_conf, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "lock directory": "/run/%a",
        "log level": 1,
        "msgd:max message size": 1 << 20,
        "msgd:trusted users": [0],
    }
    assert msgparm.main(["-s", smb_conf, "--json", "-v"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == [parameter.name for parameter in PARAMETERS]
    assert msgparm.main(["-s", smb_conf, "--json", "--parameter-name=close timeout"]) == 0
    assert capsys.readouterr().out == "5.0\n"


def test_one_line_for_each_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "smb.conf"
    path.write_text("messaging type = foo\nuse mmap = maybe\n")
    assert msgparm.main(["-s", str(path)]) == 1
    compiled_in = ", ".join(module.name for module in _registry.MESSAGING_MODULES)
    assert capsys.readouterr() == (
        "",
        f"msgparm: {path}:1: messaging type = foo: not compiled in; compiled in: {compiled_in}\n"
        f"msgparm: {path}:2: use mmap = maybe: not yes or no\n",
    )


def test_missing_smb_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", str(tmp_path / "smb.conf"))
    assert msgparm.main([]) == 0
    printed = capsys.readouterr()
    assert printed.out == "[global]\n"
    assert printed.err.endswith("the defaults are in force.\n")
    assert msgparm.main(["-s", str(tmp_path / "smb.conf")]) == 1
    assert capsys.readouterr().err == f"msgparm: {tmp_path}/smb.conf: No such file or directory\n"


def test_warns_of_a_samba_with_other_sockets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "smb.conf"
    sockets = tmp_path / "private" / "msg.sock"
    path.write_text(f"private dir = {tmp_path}/private\nlock dir = {tmp_path}\n")
    assert msgparm.main(["-s", str(path)]) == 0
    assert "warning" not in capsys.readouterr().err
    sockets.mkdir(parents=True)
    assert msgparm.main(["-s", str(path)]) == 0
    warning = capsys.readouterr().err.splitlines()[-1]
    assert warning.startswith(f"msgparm: warning: {sockets} exists, but msgd's sockets are in {tmp_path}/msg.sock")
    path.write_text(f"{path.read_text()}{warning.partition(', set ')[2]}\n")
    assert msgparm.main(["-s", str(path)]) == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(("option", "text"), [("--help", "examples:"), ("-V", f"Version {_registry.VERSION}\n")])
def test_help_and_version(option: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert msgparm.main([option]) == 0
    assert text in capsys.readouterr().out


PROGRAM = [sys.executable, "-m", "msgd.tools.msgparm"]


def test_closed_pipe_as_stdout(smb_conf: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as stdout:
        ended = subprocess.run([*PROGRAM, "-v", "-s", smb_conf], stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        b"Load smb config files from " + os.fsencode(smb_conf),
        b"Loaded services file OK.",
    ]


def test_full_disk_as_stdout(smb_conf: str) -> None:
    with open("/dev/full", "wb") as stdout:
        ended = subprocess.run([*PROGRAM, "-s", smb_conf], stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == b"msgparm: stdout: No space left on device"


def test_bytes_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "smb.conf"
    path.write_bytes(b"lock dir = /run/caf\xe9\n")
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    ended = subprocess.run([*PROGRAM, "-s", path], env=strict, capture_output=True, check=True)
    assert ended.stdout == b"[global]\n\tlock directory = /run/caf\xe9\n"


def test_smb_conf_from_a_pipe() -> None:
    command = [*PROGRAM, "-s", "/dev/stdin", "--parameter-name=lock dir"]
    ended = subprocess.run(command, input=b"lock dir = /run/x\n", capture_output=True, check=True)
    assert ended.stdout == b"/run/x\n"


def test_a_line_of_sambas_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "smb.conf"
    path.write_text("log level = 11\n" + "nonsense\n" * 6)
    assert msgparm.main(["-s", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == "[global]\n\tlog level = 10\n"
    lines = printed.err.splitlines()
    assert lines[0] == f"msgparm: warning: {path}:1: log level = 11: not from 0 to 10; msgd uses 10"
    assert lines[4:6] == [
        f"msgparm: warning: {path}:5: nonsense: neither a [section] nor name = value",
        "msgparm: warning: and 2 more; msgparm -v prints them all",
    ]
    assert msgparm.main(["-v", "-s", str(path)]) == 0
    assert capsys.readouterr().err.count("warning: ") == 7


def test_what_samba_refuses_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "smb.conf"
    path.write_text("log level = 11\n[]\n[s]\ncopy = nosuch\n")
    assert msgparm.main(["-s", str(path)]) == 1
    assert capsys.readouterr() == (
        "",
        f"msgparm: {path}:2: []: a section must have a name\n"
        f"msgparm: {path}:4: copy = nosuch: no share of this name comes before [s]\n"
        "msgparm: Samba refuses this file; msgd uses the rest of it\n",
    )
