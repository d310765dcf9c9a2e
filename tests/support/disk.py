# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""A small disk, which tests fill to the last byte."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_disk(scratch: Path, size: int) -> Iterator[Path]:
    """A file system with room for `size` bytes.  Root only."""
    disk = scratch / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "msgd-test", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill_disk(disk: Path) -> Path:
    """Fill the disk completely, by a file that can be removed."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast
