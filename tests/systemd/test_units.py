"""systemd's files as they are installed: systemd itself has nothing against them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from build_support.report import ConfigureError
from build_support.units import INSTALLED_AS, fill_in, units
from configure import ROOT
from tests.build.conftest import Tree

DIRECTORIES = {
    name: f"/the/{name}" for name in ("prefix", "unitdir", "sbindir", "lockdir", "piddir", "privatedir", "logdir")
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


@pytest.fixture
def installed(tree: Tree, tmp_path: Path) -> Path:
    """The directory of the units of an installation."""
    prefix = tmp_path / "installed"
    tree.configure(f"--prefix={prefix}", f"--with-lockdir={tmp_path}/run", "--quiet")
    tree.run("make", "install")
    return prefix / "lib" / "systemd" / "system"


@needs_systemd
def test_the_units_are_well_formed(installed: Path) -> None:
    said = analyze("verify", "--man=no", str(installed / "msgd.service"), str(installed / "msgd.socket"))
    assert "msgd." not in said


@needs_systemd
@pytest.mark.parametrize("with_systemd", [True, False])
def test_little_is_exposed(tmp_path: Path, with_systemd: bool) -> None:
    for unit in units(ROOT, DIRECTORIES, with_systemd=with_systemd):
        (tmp_path / unit.name).write_text(unit.text)
    analyze("security", "--offline=true", f"--threshold={EXPOSURE}", str(tmp_path / "msgd.service"))


def test_directories_and_conditions_are_filled_in() -> None:
    template = "a @lockdir@ b\n@if-systemd with\n@if-no-systemd without\n"
    assert fill_in(template, {"lockdir": "/a b%c"}, with_systemd=True) == "a /a b%%c b\nwith\n"
    assert fill_in(template, {"lockdir": "/d"}, with_systemd=False) == "a /d b\nwithout\n"
    with pytest.raises(ConfigureError, match="cannot stand in a systemd unit"):
        fill_in(template, {"lockdir": '/a"b'}, with_systemd=True)


def test_nothing_is_left_to_fill_in() -> None:
    made = list(units(ROOT, DIRECTORIES, with_systemd=True))
    assert {unit.name for unit in made} == set(INSTALLED_AS) == {path.stem for path in (ROOT / "systemd").iterdir()}
    for unit in made:
        assert "@" not in unit.text.replace("@system-service", "").replace("~@", "").replace(" @", "")
        assert unit.path.startswith("/the/")


def test_configure_leaves_them_filled_in(tree: Tree) -> None:
    tree.configure("--prefix=/opt/m", "--without-systemd", "--quiet")
    service = (tree.path / "build" / "systemd" / "msgd.service").read_text()
    assert 'ExecStart="/opt/m/sbin/msgd" -F\n' in service
    assert "\nType=exec\n" in service
    assert "WatchdogSec" not in service
    assert (
        "ListenStream=/opt/m/var/run/msgd/msgd.sock\n" in (tree.path / "build" / "systemd" / "msgd.socket").read_text()
    )
