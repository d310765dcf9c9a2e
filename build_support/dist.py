# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""`make dist`: the source archive of a release, msgd-VERSION.tar.gz, without setuptools and without the network.

Rule 1. It holds the files that git knows in this tree, as they are now. A tree without git is an unpacked archive, and
        all of it is packed but what work in the tree leaves behind.
Rule 2. It has a PKG-INFO, so it is what Python's tools call an sdist.
Rule 3. It has no debian/, which belongs to Debian's source package: deb.py adds it.
Rule 4. Every time in it is SOURCE_DATE_EPOCH, or else that of the newest commit. Equal trees make equal archives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from build_support import archive, metadata, project
from build_support.project import ROOT
from build_support.registry import REGISTRY

_LEFT_BEHIND = shutil.ignore_patterns(
    "build", "debian", "dist", "__pycache__", REGISTRY.name, ".*_cache", ".hypothesis", ".git"
)


def make(root: Path, target: Path) -> Path:
    """Write the archive of the tree at `root` into the directory `target`, and return its path."""
    name = f"msgd-{project.read(root).version}"
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        release = Path(scratch, name)
        if (root / ".git").exists():
            os.environ.setdefault("SOURCE_DATE_EPOCH", _git(root, "log", "-1", "--format=%ct").strip())
            _copy_known(root, release)
        else:
            shutil.copytree(root, release, ignore=_LEFT_BEHIND)
        (release / "PKG-INFO").write_text(metadata.render(root))
        return Path(archive.pack(release, target / f"{name}.tar.gz"))


def _copy_known(root: Path, release: Path) -> None:
    for name in _git(root, "ls-files", "-z").split("\0"):
        if name and not name.startswith("debian/") and (root / name).exists():
            (release / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, release / name)


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    print(make(ROOT, Path(sys.argv[1])))
