# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A container that a real systemd boots, whose root is an overlay over this machine's: nothing of it is changed.

There is one at a time on a machine.  Each systemd takes the cgroups of its services for its own, and where no systemd
runs outside, all containers are in the same one: if two of them ran a msgd.service, one would signal the other's
processes and miss its own.

Inside, a service runs a script of checks, which writes down what each saw.  The script has `@check` functions.
"""

from __future__ import annotations

import ast
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INIT = Path("/lib/systemd/systemd")
DISTRIBUTION_PYTHON = Path("/usr/bin/python3")
TIMEOUT = 400.0
"""Seconds for all of it, from the start of the container to its end; it takes some 20 where nothing else runs."""
LOCK = Path("/run/msgd-test-container.lock")
"""Locked while there is a container; only root can open it."""


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


def checks_of(inside: Path) -> list[str]:
    """The names of the checks of a script, in their order."""
    return [
        node.name
        for node in ast.parse(inside.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(one, ast.Name) and one.id == "check" for one in node.decorator_list)
    ]


def run_checks(inside: Path, out: Path, binds: Mapping[Path, str]) -> dict[str, dict[str, Any]]:
    """Boot a container with these directories bound into it, run the script there, and return what was seen, by check.

    `out` is an empty directory for the report.
    """
    with LOCK.open("wb") as lock, overlay() as root:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for gone in ("etc/msgd", "usr/lib/msgd", "run/msgd", "usr/sbin/policy-rc.d"):  # of what this machine may have
            path = root / gone
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
        (root / "etc" / "systemd" / "system" / "msgd-check.service").write_text(SERVICE)
        shutil.copy(inside, root / "srv" / "inside.py")
        for bound in binds.values():
            (root / bound.lstrip("/")).mkdir(exist_ok=True)
        console = boot(root, {**binds, out: "/out"})
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
