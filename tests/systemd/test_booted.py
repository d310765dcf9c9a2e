# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""msgd installed in a container that a real systemd has booted.

The container's root is an overlay over this machine's: nothing of it is changed.  Inside, a service runs inside.py,
which makes the checks and writes down what it saw; each is a test here.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.build_support.conftest import Tree

INSIDE = Path(__file__).with_name("inside.py")
INIT = Path("/lib/systemd/systemd")
DISTRIBUTION_PYTHON = Path("/usr/bin/python3")
TIMEOUT = 400.0
"""Seconds for all of it, from the start of the container to its end; it takes some 20 where nothing else runs."""

CHECKS = [
    node.name
    for node in ast.parse(INSIDE.read_text()).body
    if isinstance(node, ast.FunctionDef)
    and any(isinstance(one, ast.Name) and one.id == "check" for one in node.decorator_list)
]

SERVICE = """\
[Unit]
Requires=basic.target
After=basic.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /srv/inside.py
Environment=PATH=/usr/sbin:/usr/bin:/sbin:/bin
"""


def unfit() -> str | None:
    """Why no container can be booted here; None if one can."""
    if os.geteuid() != 0:
        return "only root can boot a container"
    for program, package in (("systemd-nspawn", "systemd-container"), (str(INIT), "systemd"), ("make", "make")):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian's {package})"
    needed = "import tdb, systemd.daemon, daemon, iniconfig"
    if subprocess.run([DISTRIBUTION_PYTHON, "-Ic", needed], capture_output=True, check=False).returncode != 0:
        return f"{DISTRIBUTION_PYTHON} cannot {needed}"
    return None


REASON = unfit()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@contextmanager
def overlay() -> Iterator[Path]:
    """This machine's root, with all changes in memory and gone in the end."""
    directory = Path(tempfile.mkdtemp(prefix="msgd-boot-"))
    root = directory / "root"
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "msgd-test", str(directory))
    try:
        for name in ("upper", "work", "root"):
            (directory / name).mkdir()
        options = f"lowerdir=/,upperdir={directory}/upper,workdir={directory}/work"
        run("mount", "-t", "overlay", "-o", options, "msgd-test", str(root))
        try:
            yield root
        finally:
            run("umount", str(root))
    finally:
        run("umount", str(directory))
        directory.rmdir()


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command} exited {done.returncode}: {done.stderr}"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What was seen inside, by check."""
    directory = tmp_path_factory.mktemp("booted")
    trees = {}
    for name, option in (("tree", "--with-systemd"), ("tree-without-systemd", "--without-systemd")):
        tree = Tree(directory / name)
        tree.configure("--prefix=/usr", f"--with-python={DISTRIBUTION_PYTHON}", option, "--quiet")
        trees[tree.path] = f"/srv/{name}"
    out = directory / "out"
    out.mkdir()
    with overlay() as root:
        for gone in ("etc/msgd", "usr/lib/msgd", "run/msgd"):  # of a msgd that this machine may have
            shutil.rmtree(root / gone, ignore_errors=True)
        (root / "etc" / "systemd" / "system" / "msgd-check.service").write_text(SERVICE)
        shutil.copy(INSIDE, root / "srv" / "inside.py")
        for path in trees.values():
            (root / path.lstrip("/")).mkdir(exist_ok=True)
        console = boot(root, {**trees, out: "/out"})
    lines = (out / "report.jsonl").read_text().splitlines() if (out / "report.jsonl").exists() else []
    assert lines, f"the container has said nothing:\n{console}"
    return {result["check"]: result for result in map(json.loads, lines)}


def boot(root: Path, binds: Mapping[Path, str]) -> str:
    """Boot the container, these directories bound into it, and wait for its end; what its console said."""
    done = subprocess.run(
        [
            "systemd-nspawn",
            f"--directory={root}",
            "--register=no",
            "--keep-unit",
            "--private-network",
            "--console=pipe",
            *(f"--bind={outside}:{inside}" for outside, inside in binds.items()),
            "--boot",
            "systemd.unit=msgd-check.service",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done.stdout


@pytest.mark.timeout(TIMEOUT + 60)
@pytest.mark.parametrize("check", CHECKS)
def test_inside(report: dict[str, dict[str, Any]], check: str) -> None:
    assert check in report, f"it came to its end before that; made were {', '.join(report)}"
    assert report[check]["fault"] is None, report[check]["fault"]
