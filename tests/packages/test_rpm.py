# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""packaging/msgd.spec: rpm builds the packages of the release archive, and rpmlint has nothing against them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_support import project
from build_support.project import ROOT
from tests.packages import check
from tests.packages.conftest import BUILD_TIMEOUT, unfit

SPEC = ROOT / "packaging" / "msgd.spec"
NAMES = ("msgd", "msgd-bench", "python3-msgd")

pytestmark = [
    pytest.mark.timeout(BUILD_TIMEOUT),
    pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="rpmbuild is not installed (Debian's rpm)"),
]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packages by name.  Debian's rpm does not know what is installed, hence --nodeps."""
    if reason := unfit():
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("rpm")
    (directory / "SOURCES").mkdir()
    subprocess.run(
        [sys.executable, "-B", "-m", "build_support.dist", directory / "SOURCES"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    done = subprocess.run(
        ["unshare", "--net", "rpmbuild", "-bb", "--nodeps", "-D", f"_topdir {directory}", str(SPEC)],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return {path.name.rsplit("-", 2)[0]: path for path in (directory / "RPMS").rglob("*.rpm")}


def contents(package: Path) -> set[str]:
    return set(check.run("rpm", "-qpl", package).splitlines())


def test_the_version_is_that_of_the_project() -> None:
    assert re.findall(r"^Version: +(.+)$", SPEC.read_text(), re.MULTILINE) == [project.read(ROOT).version]
    assert f"- {project.read(ROOT).version}-1\n" in SPEC.read_text()


def test_each_file_is_in_its_package(packages: dict[str, Path]) -> None:
    assert set(packages) == set(NAMES)
    daemon, library, bench = (contents(packages[name]) for name in ("msgd", "python3-msgd", "msgd-bench"))
    assert {"/usr/sbin/msgd", "/usr/bin/msgcontrol", "/etc/msgd/smb.conf", "/usr/share/doc/msgd/gateway.md"} < daemon
    assert [path for path in library if path.endswith("/msgd/messaging/context.py")]
    assert [path for path in library if "/msgd/_native." in path]
    assert "/usr/bin/msgbench" in bench
    assert not [path for path in library if "/msgd/bench" in path]
    assert not [path for path in daemon | library | bench if "manifest.json" in path or os.fspath(ROOT) in path]
    assert check.run("rpm", "-qpc", packages["msgd"]).split() == ["/etc/msgd/smb.conf"]


@pytest.mark.skipif(shutil.which("rpmlint") is None, reason="rpmlint is not installed")
def test_rpmlint_has_nothing_against_them(packages: dict[str, Path]) -> None:
    said = check.run("rpmlint", "-c", SPEC.with_name("rpmlint.toml"), SPEC, *packages.values())
    assert not re.findall(r"^.+: [EW]: .+$", said, re.MULTILINE), said
