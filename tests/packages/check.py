# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`make deb-check`: check the packages that `make deb` has built.  It needs no network and no test runner.

    python3 -m tests.packages.check DIRECTORY

lintian looks at them.  Then a container that a real systemd boots installs them, upgrades to them, removes and purges
them (inside.py).  test_debian.py makes the same checks, on packages that it builds itself.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from build_support.project import ROOT
from tests.support import container

INSIDE = Path(__file__).with_name("inside.py")
PATIENCE = 300.0


def run(*command: str | Path) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{command} exited {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def faults_by_lintian(packages: Path) -> list[str]:
    """The errors and warnings that lintian has for the packages of a directory."""
    (changes,) = packages.glob("*.changes")
    command = ["lintian", "--allow-root", str(changes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode in (0, 2), done.stderr  # 2: it has found something
    return re.findall(r"^[EW]: .*$", done.stdout, re.MULTILINE)


def life(packages: Path, scratch: Path) -> dict[str, dict[str, Any]]:
    """What was seen inside the container, by check.  `scratch` is an empty directory."""
    old, out = scratch / "old", scratch / "out"
    old.mkdir()
    out.mkdir()
    as_the_version_before(packages, old)
    binds = {old: "/srv/old", packages: "/srv/new", ROOT / "debian" / "tests": "/srv/debian-tests"}
    return container.run_checks(INSIDE, out, binds)


def as_the_version_before(packages: Path, target: Path) -> None:
    """Pack the same files as a version that dpkg takes for an older one."""
    for package in packages.glob("*.deb"):
        unpacked = target / package.stem
        run("dpkg-deb", "-R", package, unpacked)
        control = unpacked / "DEBIAN" / "control"
        control.write_text(re.sub(r"(Version: |\((?:>=|<<) )([\d.]+)-1", r"\1\2~before-1", control.read_text()))
        run("dpkg-deb", "--root-owner-group", "-b", unpacked, target / f"{package.stem}_before.deb")
        shutil.rmtree(unpacked)


def main(packages: Path) -> int:
    """Make all checks, say what they saw, and return the exit status."""
    if (reason := container.unfit()) or (reason := None if shutil.which("lintian") else "lintian is not installed"):
        print(f"make deb-check: {reason}", file=sys.stderr)
        return 1
    faults = faults_by_lintian(packages)
    print(f"lintian: {len(faults)} errors and warnings", *faults, sep="\n    ")
    with tempfile.TemporaryDirectory(prefix="msgd-deb-") as scratch:
        report = life(packages, Path(scratch))
    for name in container.checks_of(INSIDE):
        seen = report.get(name, {"fault": "it came to its end before that\n"})
        print(f"{name.replace('_', ' ')}: {'failed' if seen['fault'] else 'passed'}")
        if seen["fault"]:
            faults.append(name)
            print(seen["fault"], file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
