# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Debian's packages of this tree, built once for all tests here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from build_support.project import ROOT

BUILD_TIMEOUT = 600.0
BUILD_DEPENDENCIES = (
    "debhelper",
    "dh-python",
    "python3-daemon",
    "python3-dev",
    "python3-iniconfig",
    "python3-systemd",
    "python3-tdb",
)


def unfit() -> str | None:
    """Why packages cannot be built here without the network; None if they can."""
    if os.geteuid() != 0:
        return "only root can cut the network off"
    if shutil.which("dpkg-buildpackage") is None:
        return "dpkg-buildpackage is not installed (Debian's dpkg-dev)"
    asked = subprocess.run(["dpkg-query", "-W", *BUILD_DEPENDENCIES], capture_output=True, text=True, check=False)
    return asked.stderr.strip() or None


def build(target: Path) -> None:
    """Build the packages in a directory, with the network cut off and Debian's programs alone."""
    done = subprocess.run(
        ["unshare", "--net", "/usr/bin/python3", "-B", "-m", "build_support.deb", str(target)],
        cwd=ROOT,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the packages."""
    if reason := unfit():
        pytest.skip(reason)
    target = tmp_path_factory.mktemp("packages")
    build(target)
    return target
