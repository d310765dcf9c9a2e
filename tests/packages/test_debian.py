# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Debian's packages: lintian has nothing against them, and they live and die well in a booted container."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from build_support import project
from build_support.project import ROOT
from tests.packages import check
from tests.packages.conftest import BUILD_TIMEOUT, build
from tests.support import container

NAMES = ("msgd", "msgd-bench", "python3-msgd")
REASON = container.unfit()
UNITS = ROOT / "tests" / "systemd" / "inside.py"

pytestmark = [
    pytest.mark.timeout(2 * BUILD_TIMEOUT + container.TIMEOUT),
    pytest.mark.skipif(not (ROOT / "debian").exists(), reason="this is an unpacked source archive, without debian/"),
]


def contents(packages: Path, name: str) -> set[str]:
    (package,) = packages.glob(f"{name}_*.deb")
    return {line.split()[5].lstrip(".") for line in check.run("dpkg-deb", "-c", package).splitlines()}


def test_there_are_source_and_binary_packages(packages: Path) -> None:
    version = project.read(ROOT).version
    here = check.run("dpkg", "--print-architecture").strip()
    architectures = {name: here if name == "python3-msgd" else "all" for name in NAMES}
    wanted = {f"{name}_{version}-1_{architecture}.deb" for name, architecture in architectures.items()}
    assert {path.name for path in packages.glob("*.deb")} == wanted
    assert (packages / f"msgd_{version}.orig.tar.gz").exists()
    assert "Format: 3.0 (quilt)" in (packages / f"msgd_{version}-1.dsc").read_text()


def test_the_version_is_in_one_place() -> None:
    """The other places say the same, and this test says so if they do not."""
    version = re.escape(project.read(ROOT).version)
    assert re.match(rf"msgd \({version}-\d+\) ", (ROOT / "debian" / "changelog").read_text())
    assert re.search(rf"^## {version} \(.+\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_each_file_is_in_its_package(packages: Path) -> None:
    daemon, library, bench = (contents(packages, name) for name in ("msgd", "python3-msgd", "msgd-bench"))
    assert {"/usr/sbin/msgd", "/usr/bin/msgcontrol", "/etc/msgd/smb.conf", "/usr/share/doc/msgd/gateway.md"} < daemon
    assert "/usr/lib/python3/dist-packages/msgd/messaging/context.py" in library
    extensions = {path for path in library if path.startswith("/usr/lib/python3/dist-packages/msgd/_native.")}
    assert len(extensions) == (sys.byteorder == "little")
    assert {"/usr/bin/msgbench", "/usr/lib/python3/dist-packages/msgd/bench/main.py"} < bench
    assert not [path for path in daemon | library | bench if path.endswith(".pyc") or "manifest.json" in path]
    for one, other in ((daemon, library), (daemon, bench), (library, bench)):
        assert all(path.endswith("/") for path in one & other)


def test_the_same_packages_are_built_in_another_directory(packages: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another" / "directory"
    elsewhere.mkdir(parents=True)
    build(elsewhere)
    for pattern in ("*.deb", "*.tar.*"):
        for package in packages.glob(pattern):
            assert (elsewhere / package.name).read_bytes() == package.read_bytes(), package.name


@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not installed")
def test_lintian_has_nothing_against_them(packages: Path) -> None:
    assert check.faults_by_lintian(packages) == []


@pytest.fixture(scope="module")
def report(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What was seen inside the container, by check."""
    return check.life(packages, tmp_path_factory.mktemp("life"))


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("name", container.checks_of(check.INSIDE))
def test_inside(report: dict[str, dict[str, Any]], name: str) -> None:
    assert name in report, f"it came to its end before that; made were {', '.join(report)}"
    assert report[name]["fault"] is None, report[name]["fault"]


@pytest.fixture(scope="module")
def units(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What tests/systemd sees inside the container, with msgd from the packages."""
    return container.run_checks(UNITS, tmp_path_factory.mktemp("out"), {packages: "/srv/debs"})


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("name", container.checks_of(UNITS))
def test_the_units_from_the_packages(units: dict[str, dict[str, Any]], name: str) -> None:
    """Socket activation, watchdog, reload and the sandbox are those of an installation from the tree."""
    assert name in units, f"it came to its end before that; made were {', '.join(units)}"
    assert units[name]["fault"] is None, units[name]["fault"]
