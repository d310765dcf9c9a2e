# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""configure.py, run for real in a copy of the tree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import configure
from build_support import registry, requirements
from build_support.requirements import Module, Requirement
from tests.build_support.conftest import Tree

PRESENT = Module("present", "msgd.backends.present", "requires what is there", (Requirement("json", "python3"),))
ABSENT = Module(
    "absent", "msgd.backends.absent", "requires what is missing", (Requirement("no_such", "python3-no-such"),)
)

KNOWN = [module.name for module in requirements.MODULES]


def test_configure_writes_registry_log_and_status(tree: Tree) -> None:
    said = tree.configure("--prefix", "/opt/m", "--without-systemd").stdout
    assert "checking for a Python interpreter... yes (" in said
    assert "checking for Python module iniconfig... yes (" in said
    assert "checking for SO_PASSCRED on datagrams... yes" in said
    assert "messaging modules  dgram" in said

    written = registry.read(tree.path)
    assert [module.name for module in written.modules] == KNOWN
    assert written.directories["lockdir"] == "/opt/m/var/run/msgd"
    assert written.configure_line == "./configure.py --prefix=/opt/m --without-systemd"
    assert not written.with_systemd
    assert os.access(written.python, os.X_OK)

    log = (tree.path / "build" / "config.log").read_text()
    assert "./configure.py --prefix=/opt/m --without-systemd" in log
    assert "probe.py" in log


def test_the_registry_is_the_same_file_until_options_change(tree: Tree) -> None:
    tree.configure("--prefix=/opt/m", "--quiet")
    before = tree.registry.stat()
    text = tree.registry.read_text()
    assert tree.configure("--prefix", "/opt/m", "--quiet").stdout == ""
    after = tree.registry.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    tree.configure("--prefix=/opt/n", "--quiet")
    assert tree.registry.read_text() == text.replace("/opt/m", "/opt/n")


def test_config_status_configures_again_with_the_same_options(tree: Tree) -> None:
    tree.configure("--prefix=/opt/a b", "--with-messaging=dgram", "--quiet")
    text = tree.registry.read_text()
    tree.registry.unlink()
    subprocess.run([tree.path / "build" / "config.status", "--quiet"], cwd="/", check=True, timeout=60)
    assert tree.registry.read_text() == text


def test_make_never_configures_over_the_users_options(tree: Tree) -> None:
    tree.configure("--prefix=/opt/m", "--quiet")
    status = tree.path / "build" / "config.status"
    os.utime(status, (0, 0))
    tree.run("make", "build/config.status")
    assert status.stat().st_mtime > 0
    assert registry.read(tree.path).directories["prefix"] == "/opt/m"


def test_the_registry_is_clean_for_the_checkers(tree: Tree) -> None:
    tree.configure("--quiet")
    for checker in (
        ["ruff", "check", "--no-respect-gitignore"],
        ["ruff", "format", "--check", "--no-respect-gitignore"],
        ["mypy", "--strict", "--cache-dir=/dev/null"],
    ):
        tree.run(sys.executable, "-m", *checker, str(tree.registry))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--frobnicate", "unrecognized arguments: --frobnicate"),
        ("--with-messaging=", "type '' is unknown; known are: dgram"),
        ("--with-messaging=dgram,pigeon", "type 'pigeon' is unknown; known are: dgram"),
        ("--with-messaging=dgram,dgram", "type 'dgram' is named twice; known are: dgram"),
        ("--with-python=/no/such/python", "/no/such/python is not an interpreter of Python 3.11 or later"),
        ("--with-python=/bin/true", "/bin/true is not an interpreter of Python 3.11 or later"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing_configured(tree: Tree, option: str, message: str) -> None:
    said = tree.configure(option, expect=1).stderr
    assert said.startswith("configure: error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not tree.registry.exists()


def test_help_comes_in_groups(tree: Tree) -> None:
    said = tree.configure("--help").stdout
    groups = ["General:", "Installation directories:", "Run-time directories:", "Features:"]
    assert [line for line in said.splitlines() if line in groups] == groups


def run_with(rows: tuple[Module, ...], tree: Tree, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(requirements, "MODULES", (*requirements.MODULES, *rows))
    return configure.main([f"--with-python={sys.executable}", *options], tree.path)


def test_a_new_messaging_module_needs_one_row(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with((PRESENT,), tree, monkeypatch, "--with-messaging=present,dgram", "--quiet") == 0
    first, second = registry.read(tree.path).modules
    assert first == ("present", "msgd.backends.present", "requires what is there")
    assert second.name == "dgram"


def test_a_module_that_was_asked_for_names_the_package_it_lacks(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with((ABSENT,), tree, monkeypatch, "--with-messaging=dgram,absent", "--quiet") == 1
    assert "install python3-no-such" in capsys.readouterr().err


def test_a_module_without_its_requirements_is_left_out_and_listed_in_the_summary(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with((PRESENT, ABSENT), tree, monkeypatch) == 0
    assert [module.name for module in registry.read(tree.path).modules] == [*KNOWN, "present"]
    assert "left out           absent (needs python3-no-such)" in capsys.readouterr().out


def test_an_interpreter_that_lacks_what_msgd_needs_is_an_error(tree: Tree, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    tree.run(sys.executable, "-m", "venv", "--without-pip", str(bare))
    said = tree.configure(f"--with-python={bare}/bin/python3", "--quiet", expect=1).stderr
    assert "needs the Python module iniconfig" in said
    assert "install python3-iniconfig" in said
