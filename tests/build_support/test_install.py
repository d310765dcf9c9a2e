# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`make install` and `make uninstall`, staged below a scratch DESTDIR."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from build_support import registry
from build_support.install import TAKE_UP
from build_support.project import ROOT
from tests.build_support.conftest import Tree

PREFIX = "opt/m"
PROGRAMS = {"msgd": "sbin", "msgcontrol": "bin", "msgparm": "bin", "msgstatus": "bin", "msgbench": "bin"}


class Destination:
    """A DESTDIR, and the configured tree that is installed in it."""

    def __init__(self, tree: Tree, path: Path) -> None:
        self.tree = tree
        self.path = path
        self.config = path / PREFIX / "etc" / "msgd" / "smb.conf"

    def make(self, target: str, *variables: str) -> str:
        return self.tree.run("make", target, f"DESTDIR={self.path}", *variables).stdout

    def contents(self) -> set[str]:
        return {f"/{path.relative_to(self.path)}" for path in self.path.rglob("*")}

    def files(self) -> set[str]:
        return {path for path in self.contents() if not Path(f"{self.path}{path}").is_dir()}


@pytest.fixture
def destination(tree: Tree, tmp_path: Path) -> Destination:
    tree.configure(f"--prefix=/{PREFIX}", "--quiet")
    path = tmp_path / "destination"
    (path / PREFIX / "bin").mkdir(parents=True)
    (path / PREFIX / "bin" / "other").write_text("another package's")
    return Destination(tree, path)


def test_installed_programs_run_from_where_they_are(destination: Destination) -> None:
    destination.make("install")
    project = tomllib.loads((destination.tree.path / "pyproject.toml").read_text())["project"]
    assert set(project["scripts"]) == set(PROGRAMS)
    for program, directory in PROGRAMS.items():
        path = destination.path / PREFIX / directory / program
        assert path.read_text().startswith(f"#!{registry.read(destination.tree.path).python}\n")
        said = subprocess.run([path, "-V"], cwd="/", capture_output=True, text=True, timeout=30, check=True).stdout
        assert project["version"] in said
    build_options = subprocess.run(
        [destination.path / PREFIX / "sbin" / "msgd", "-b"], cwd="/", capture_output=True, text=True, check=True
    ).stdout
    assert f"/{PREFIX}/etc/msgd" in build_options


def test_everything_is_installed_where_it_is_searched_for(destination: Destination) -> None:
    destination.make("install", "prefix=/usr")
    for path in (
        "/etc/msgd/smb.conf",
        "/usr/lib/systemd/system/msgd.service",
        "/usr/lib/systemd/system/msgd.socket",
        "/usr/lib/systemd/system/msgd@.service",
        "/usr/lib/sysctl.d/60-msgd.conf",
        "/usr/lib/sysusers.d/msgd.conf",
        "/usr/lib/tmpfiles.d/msgd.conf",
        "/usr/share/doc/msgd/CHANGELOG.md",
        "/usr/share/doc/msgd/gateway.md",
        *(f"/usr/share/bash-completion/completions/{program}" for program in PROGRAMS),
        *(
            f"/usr/share/man/man{8 if program == 'msgd' else 1}/{program}.{8 if program == 'msgd' else 1}"
            for program in PROGRAMS
        ),
        "/usr/share/man/man5/msgd-smb.conf.5",
    ):
        assert path in destination.files()
    service = Path(f"{destination.path}/usr/lib/systemd/system/msgd.service").read_text()
    assert 'ExecStart="/usr/sbin/msgd" -F\n' in service
    page = Path(f"{destination.path}/usr/share/man/man5/msgd-smb.conf.5").read_text()
    for page_of_gateway in ("man5/msgd-smb.conf.5", "man8/msgd.8"):
        assert (
            "/usr/share/doc/msgd/gateway.md" in Path(f"{destination.path}/usr/share/man/{page_of_gateway}").read_text()
        )
    assert "Default: /run/msgd." in page  # of this prefix, not of the one that the tree is configured for


def test_the_commands_for_systemd_are_shown_where_it_searches(destination: Destination) -> None:
    """What an installation without DESTDIR prints is tested in tests/systemd."""
    assert "\n    ".join(TAKE_UP) in (ROOT / "README.md").read_text()
    assert TAKE_UP[0] not in destination.make("install", "prefix=/usr")


def test_make_is_used_as_everywhere(destination: Destination, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several jobs, with what debhelper passes, and showing the commands."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    said = destination.tree.run(
        "make", "-j2", "V=1", "INSTALL=install --strip-program=true", "install", f"DESTDIR={destination.path}"
    )
    assert "+ python3 -B -m build_support.install install" in said.stderr
    assert any(path.endswith(".pyc") for path in destination.files())
    destination.make("uninstall")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    destination.make("install")
    assert not any(path.endswith(".pyc") for path in destination.files())


def test_the_package_can_be_where_the_interpreter_searches(destination: Destination) -> None:
    tree = destination.tree
    tree.configure("--prefix=/usr", "--with-pythondir=/usr/lib/python3/dist-packages", "--quiet")
    destination.make("install")
    packages = destination.path / "usr/lib/python3/dist-packages"
    launcher = destination.path / "usr/bin/msgcontrol"
    assert "sys.path" not in launcher.read_text()
    asked = "import importlib.metadata as m, msgd; print(msgd.__file__, m.version('msgd'), m.requires('msgd')[0])"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(packages)}
    for command, expected in (
        (
            [sys.executable, "-c", asked],
            f"{packages}/msgd/__init__.py {registry.read(tree.path).version} iniconfig>=1.1",
        ),
        ([str(launcher), "-V"], f"Version {registry.read(tree.path).version}"),
    ):
        done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


NOT_DEBIANS = ("rich", "prometheus_client", "matplotlib", "zmq", "pynng", "redis", "nats", "iceoryx2", "dbus_fast")
"""Modules that the programs use if they are there, and must do without otherwise."""


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_the_programs_run_with_the_distribution_s_packages_alone(destination: Destination, program: str) -> None:
    destination.make("install", "prefix=/usr")
    missing = destination.path / "missing"
    missing.mkdir()
    for module in NOT_DEBIANS:
        (missing / f"{module}.py").write_text(f"raise ImportError('{module} is not installed')\n")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(missing), "PYTHONNOUSERSITE": "1"}
    for option in ("-V", "--help"):
        done = subprocess.run(
            [destination.path / "usr" / PROGRAMS[program] / program, option],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_uninstall_removes_what_install_installed_and_nothing_else(destination: Destination) -> None:
    before = destination.contents()
    destination.make("install")
    package = f"/{PREFIX}/lib/msgd"
    manifest = json.loads(Path(f"{destination.path}{package}/manifest.json").read_text())
    brought = {*manifest["files"], *manifest["configuration"], f"{package}/manifest.json"}
    assert destination.files() == brought | {f"/{PREFIX}/bin/other"}
    assert f"{package}/msgd/py.typed" in brought
    destination.make("install")
    destination.make("uninstall")
    assert destination.contents() == before


def test_an_obstacle_is_reported_in_one_line(destination: Destination) -> None:
    (destination.path / PREFIX / "lib").write_text("no directory")
    said = destination.tree.run("make", "install", f"DESTDIR={destination.path}", expect=2).stderr
    first, *_ = said.splitlines()
    assert first == f"make install: error: {destination.path}/{PREFIX}/lib: File exists"


def test_an_edited_configuration_belongs_to_the_administrator(destination: Destination) -> None:
    destination.make("install")
    shipped = destination.config.read_text()
    destination.config.write_text("[global]\nlog level = 3\n")
    assert "which was edited" in destination.make("install")
    assert destination.config.read_text() == "[global]\nlog level = 3\n"
    assert destination.config.with_name("smb.conf.new").read_text() == shipped
    destination.make("uninstall")
    assert {path for path in destination.files() if "etc" in path} == {f"/{PREFIX}/etc/msgd/smb.conf"}


def test_a_configuration_that_was_there_before_is_never_touched(destination: Destination) -> None:
    destination.config.parent.mkdir(parents=True)
    sample = (destination.tree.path / "etc" / "smb.conf").read_text()
    destination.config.write_text(sample)
    destination.make("install")
    destination.make("uninstall")
    assert destination.config.read_text() == sample


def test_a_newer_version_replaces_unedited_files_and_removes_old_ones(destination: Destination) -> None:
    package = destination.tree.path / "msgd"
    (package / "gone.py").write_text("")
    destination.make("install")
    assert any("gone" in path for path in destination.files())
    (package / "gone.py").unlink()
    (destination.tree.path / "etc" / "smb.conf").write_text("[global]\n# newer\n")
    destination.make("install")
    assert not any("gone" in path for path in destination.files())
    assert destination.config.read_text() == "[global]\n# newer\n"


def test_the_installed_registry_names_another_prefix(destination: Destination) -> None:
    destination.make("install", "prefix=/srv/n")
    installed = registry.read(destination.path / "srv/n/lib/msgd")
    assert installed.directories["configdir"] == "/srv/n/etc/msgd"
    assert installed.configure_line == "./configure.py --prefix=/srv/n"
    assert registry.read(destination.tree.path).directories["prefix"] == f"/{PREFIX}"
    destination.make("uninstall", "prefix=/srv/n")
    assert destination.files() == {f"/{PREFIX}/bin/other"}
