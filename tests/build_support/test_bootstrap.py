# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`configure.py --bootstrap`: the real thing, and what it does where it may not install, or cannot."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

import pytest

from build_support import bootstrap, interpreter, project
from build_support.report import ConfigureError, Report
from build_support.requirements import Requirement, SuitePackage
from tests.build_support.conftest import NETWORK_PATIENCE, Tree

MISSING = (Requirement("no_such_module", "python3-no-such"),)
INSTALL = (
    "env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -q -o DPkg::Lock::Timeout=300"
    " install -y --no-install-recommends python3-no-such"
)


@pytest.fixture
def report() -> Report:
    return Report(io.StringIO())


@pytest.fixture
def failing_apt_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report) -> Path:
    """Put an apt-get on PATH that records its calls and fails, and no sudo. Return the file with the calls.

    The interpreter of the tests takes the part of the distribution's.
    """
    python = interpreter.named(sys.executable, (), report)
    monkeypatch.setattr(bootstrap, "DISTRIBUTION_PYTHON", python.base)
    calls = tmp_path / "calls"
    programs = tmp_path / "bin"
    programs.mkdir()
    apt_get = programs / "apt-get"
    apt_get.write_text(f'#!/bin/sh\necho "$RUNLEVEL $DEBIAN_FRONTEND $*" >>{calls}\necho E: no network\nexit 100\n')
    apt_get.chmod(0o755)
    for needed in ("env", "sh"):
        (programs / needed).symlink_to(str(shutil.which(needed)))
    monkeypatch.setenv("PATH", str(programs))
    return calls


def test_a_user_who_may_not_install_is_told_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report, failing_apt_get: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigureError) as error:
        bootstrap.make_environment(tmp_path, MISSING, sys.executable, report)
    assert str(error.value).endswith(f": {INSTALL}")
    assert not failing_apt_get.exists()


def test_a_failed_installation_is_reported_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report, failing_apt_get: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigureError) as error:
        bootstrap.make_environment(tmp_path, MISSING, sys.executable, report)
    assert str(error.value).endswith(f": {INSTALL}")
    update, install = failing_apt_get.read_text().splitlines()
    assert update.endswith(" update")
    assert install.startswith("1 noninteractive ")
    assert install.endswith("install -y --no-install-recommends python3-no-such")


def test_a_user_is_told_in_one_line_which_tests_will_be_skipped(
    monkeypatch: pytest.MonkeyPatch, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    there = SuitePackage("coreutils", "true", "tests/there")
    bootstrap.install_test_packages((there, SuitePackage("python3-no-such", "no-such", "tests/no-such")), report)
    assert capsys.readouterr().out == f"configure: tests/no-such will be skipped; to run them, as root: {INSTALL}\n"
    bootstrap.install_test_packages((there,), report)
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can cut the network off")
def test_make_needs_no_network_and_no_pip_on_the_distribution_s_packages(tree: Tree, tmp_path: Path) -> None:
    def make(*arguments: str) -> str:
        return tree.run("unshare", "--net", "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "make", *arguments).stdout

    assert " -m pip " not in make("V=1")
    assert not (tree.path / "build" / "venv" / "bin" / "pip").exists()
    assert "All steps succeeded" in make("demo")
    make("install", f"DESTDIR={tmp_path}/there")
    assert (tmp_path / "there/usr/local/sbin/msgd").exists()


@pytest.mark.network
@pytest.mark.timeout(NETWORK_PATIENCE)
def test_bootstrap_makes_an_environment_once(tree: Tree) -> None:
    said = tree.configure("--bootstrap").stdout
    assert "configure: making build/venv" in said
    assert " -m pip " not in said
    python = str(tree.path / "build" / "venv" / "bin" / "python")
    where = "import msgd.errors; print(msgd.errors.__file__)"
    assert tree.run("env", "--chdir=/", python, "-c", where).stdout.strip() == str(tree.path / "msgd" / "errors.py")
    for program in project.read(tree.path).programs:
        assert tree.run("env", "--chdir=/", str(tree.path / "build" / "bin" / program.name), "-V").stdout

    text = tree.registry.read_text()
    assert "build/venv" not in text
    again = tree.configure("--bootstrap").stdout
    assert "configure: " not in again
    assert tree.registry.read_text() == text
    tree.run("make", "compiled")
    tree.run("make", "--question", "all")

    # The programs need no linter and no test runner; the checks do.
    assert not (tree.path / "build" / "venv" / "bin" / "ruff").exists()
    environment = interpreter.named(python, (), Report(io.StringIO()))
    bootstrap.install_checkers(tree.path, environment, Report(io.StringIO()))
    tree.run(python, "-c", "import importlinter, mypy, pytest, ruff")
    tree.run("make", "--question", "all")
