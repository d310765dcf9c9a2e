# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""systemd's files as they are installed: systemd itself has nothing against them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from build_support.project import ROOT
from build_support.report import ConfigureError
from build_support.units import INSTALLED_AS, ONLY_WITH_SYSTEMD, fill_in, units
from tests.build_support.conftest import Tree

DIRECTORIES = {
    name: f"/the/{name}"
    for name in ("prefix", "unitdir", "sbindir", "configdir", "lockdir", "piddir", "privatedir", "logdir")
}
EXPOSURE = 30
"""The most that is allowed, in tenths."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_systemd
@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--with-systemd", ["msgd.service", "msgd.socket", "msgd@.service"]),
        ("--without-systemd", ["msgd.service", "msgd@.service"]),
    ],
)
def test_the_units_are_well_formed(tree: Tree, tmp_path: Path, option: str, wanted: list[str]) -> None:
    prefix = tmp_path / "installed"
    tree.configure(f"--prefix={prefix}", f"--with-lockdir={tmp_path}/run", option, "--quiet")
    tree.run("make", "install")
    installed = sorted((prefix / "lib" / "systemd" / "system").iterdir())
    assert [path.name for path in installed] == wanted
    assert "msgd." not in analyze("verify", "--man=no", *map(str, installed))


@needs_systemd
@pytest.mark.parametrize("name", ["msgd.service", "msgd@.service"])
@pytest.mark.parametrize("with_systemd", [True, False])
def test_little_is_exposed(tmp_path: Path, with_systemd: bool, name: str) -> None:
    for unit in units(ROOT, DIRECTORIES, with_systemd=with_systemd):
        (tmp_path / unit.name).write_text(unit.text)
    security = ("security", "--offline=true", str(tmp_path / name))
    analyze(*security, f"--threshold={EXPOSURE}")
    service = (tmp_path / name).read_text()
    reasons = {word for line in service.splitlines() if line.startswith("#") for word in re.findall(r"[@\w]+", line)}
    for setting in json.loads(analyze(*security, "--json=short")):
        if setting["exposure"] is not None and not setting["set"]:
            name, _, what = setting["name"].partition("=~")
            assert reasons & set(re.findall(r"[@\w]+", what or name)), f"no comment says why {setting['name']} is open"


@pytest.mark.parametrize("with_systemd", [True, False])
def test_want_of_memory_ends_one_process_and_not_the_service(with_systemd: bool) -> None:
    (service,) = (one for one in units(ROOT, DIRECTORIES, with_systemd=with_systemd) if one.name == "msgd.service")
    assert "\nOOMPolicy=continue\n" in service.text


def test_directories_and_conditions_are_filled_in() -> None:
    template = "a @lockdir@ b\n@if-systemd with\n@if-no-systemd without\n"
    assert fill_in(template, {"lockdir": "/a b%c"}, with_systemd=True) == "a /a b%%c b\nwith\n"
    assert fill_in(template, {"lockdir": "/d"}, with_systemd=False) == "a /d b\nwithout\n"
    assert fill_in('d "@a@"\n\n\nd "@b@"\n', {"a": "/same", "b": "/same"}, with_systemd=True) == 'd "/same"\n\n\n'
    with pytest.raises(ConfigureError, match="cannot be written in a unit of systemd"):
        fill_in(template, {"lockdir": '/a"b'}, with_systemd=True)


def test_nothing_is_left_to_fill_in() -> None:
    assert {name.replace("@", "") for name in INSTALLED_AS} == {path.stem for path in (ROOT / "systemd").iterdir()}
    made, without = (list(units(ROOT, DIRECTORIES, with_systemd=with_systemd)) for with_systemd in (True, False))
    assert {unit.name for unit in made} == set(INSTALLED_AS)
    assert {unit.name for unit in without} == set(INSTALLED_AS) - ONLY_WITH_SYSTEMD
    for unit in (*made, *without):
        assert "@" not in unit.text.replace("@system-service", "").replace("~@", "").replace(" @", "")
        assert unit.path.startswith("/the/")


def test_the_unit_for_instances_differs_in_its_directory_only() -> None:
    made = {unit.name: unit.text.splitlines() for unit in units(ROOT, DIRECTORIES, with_systemd=True)}
    single, instance = (
        {line for line in made[name] if line and not line.startswith("#")} for name in ("msgd.service", "msgd@.service")
    )
    assert {line.partition("=")[0] for line in single - instance} == {
        *("Description", "Wants", "After", "ExecStart", "ReadWritePaths", "Also")
    }
    assert all(
        "%i" in line or line in ("RuntimeDirectoryPreserve=yes", "StateDirectoryMode=0700")
        for line in instance - single
    )


@pytest.mark.parametrize("with_systemd", [True, False])
def test_it_starts_after_ctdb_where_there_is_one(with_systemd: bool) -> None:
    for unit in units(ROOT, DIRECTORIES, with_systemd=with_systemd):
        assert ("After=ctdb.service" in unit.text.splitlines()) is unit.name.endswith(".service")


def test_a_main_process_that_hangs_is_noticed() -> None:
    """That it is started anew then, tests/systemd/inside.py sees, with less patience."""
    (service,) = (one for one in units(ROOT, DIRECTORIES, with_systemd=True) if one.name == "msgd.service")
    (seconds,) = re.findall(r"^WatchdogSec=(\d+)$", service.text, re.MULTILINE)
    assert 0 < int(seconds) <= 60


def test_without_systemd_nothing_is_left_to_it_that_it_cannot_do() -> None:
    made = {unit.name: unit.text for unit in units(ROOT, DIRECTORIES, with_systemd=False)}
    service = made["msgd.service"].splitlines()
    assert {"Type=exec", "KillMode=control-group", "KillSignal=SIGINT"} < set(service)
    settings = {line.partition("=")[0] for line in service if line != "After=ctdb.service"}  # an order needs nothing
    assert not settings & {"Wants", "After", "NotifyAccess", "WatchdogSec", "FileDescriptorStoreMax", "Also"}
    assert not any("msgd.socket" in text for text in made.values())


def test_configure_leaves_them_filled_in(tree: Tree) -> None:
    tree.configure("--prefix=/opt/m", "--with-systemd", "--quiet")
    made = tree.path / "build" / "systemd"
    assert "ListenStream=/opt/m/var/run/msgd/msgd.sock\n" in (made / "msgd.socket").read_text()
    tree.configure("--prefix=/opt/m", "--without-systemd", "--quiet")
    assert 'ExecStart="/opt/m/sbin/msgd" -F\n' in (made / "msgd.service").read_text()
    assert not (made / "msgd.socket").exists()
