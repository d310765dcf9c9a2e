# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`make deb`: Debian's source and binary packages of this tree, built without the network.

What is built is the release archive (dist.py) with the tree's debian/, never the tree itself. So the packages are those
that anybody else makes of the archive, and nothing of the tree's own configuration gets into them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from build_support import dist, project
from build_support.project import ROOT

PACKAGES = ("*.deb", "*.dsc", "*.buildinfo", "*.changes", "*.tar.xz", "*.tar.gz")


def build(root: Path, target: Path) -> list[Path]:
    """Build the packages in the directory `target`, and return the paths of the binary packages."""
    for pattern in PACKAGES:
        for path in target.glob(pattern):
            path.unlink()
    version = project.read(root).version
    source = target / f"msgd-{version}"
    shutil.rmtree(source, ignore_errors=True)
    original = dist.make(root, target).rename(target / f"msgd_{version}.orig.tar.gz")
    subprocess.run(["tar", "-xzf", original, "-C", target], check=True)
    shutil.copytree(root / "debian", source / "debian", dirs_exist_ok=True)
    subprocess.run(["dpkg-buildpackage", "-us", "-uc"], cwd=source, check=True)
    return sorted(target.glob("*.deb"))


if __name__ == "__main__":
    for package in build(ROOT, Path(sys.argv[1])):
        print(package)
