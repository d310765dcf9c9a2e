# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Source archives and wheels that are the same, byte for byte, wherever and whenever they are made.

Rule 1. Files are in the order of their names, belong to root, and have the mode 0644, or 0755 if they are executable.
        The umask of who makes the archive does not show.
Rule 2. Every time in the archive is SOURCE_DATE_EPOCH, the number of seconds since 1970 that reproducible builds agree
        on. Without it, each file keeps its own time.
"""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zipfile
from pathlib import Path


def pack(directory: Path, target: Path) -> str:
    """Pack `directory` under its own name, and return the path of the archive."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")

    def normal(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mode = _mode(member.mode | (0o100 if member.isdir() else 0))
        member.mtime = int(epoch) if epoch else int(member.mtime)
        return member

    with (
        target.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=int(epoch or 0)) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as packed,
    ):
        packed.add(directory, directory.name, filter=normal)  # tarfile sorts the files of each directory
    return str(target)


def normalize_wheel(path: Path) -> None:
    """Give the files in a wheel the modes of Rule 1. setuptools has taken care of all else."""
    made = path.with_suffix(".new")
    with zipfile.ZipFile(path) as wheel, zipfile.ZipFile(made, "w") as normal:
        for member in wheel.infolist():
            member.external_attr = (stat.S_IFREG | _mode(member.external_attr >> 16)) << 16
            normal.writestr(member, wheel.read(member))
    made.chmod(0o644)
    made.rename(path)


def _mode(mode: int) -> int:
    return 0o755 if mode & 0o100 else 0o644
