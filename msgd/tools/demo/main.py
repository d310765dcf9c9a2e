# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The demo (`make demo`): show a real msgd and real processes exchanging messages.

Rule 1. The demo works in a scratch directory.  However it ends, it leaves no process and no file behind.
Rule 2. It never sleeps.  Each step waits for the event that it needs, with a timeout that only a hanging process
        reaches.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from msgd.errors import ConfigError
from msgd.presence.socket_path import check_socket_directory
from msgd.programs import cli
from msgd.tools.demo.output import Output
from msgd.tools.demo.processes import DemoFailed, Processes
from msgd.tools.demo.scenes import Scenes

PROGRAM = "demo"


def main() -> int:
    """Run the demo and return its exit status: 0 if every step succeeded."""
    return cli.run(PROGRAM, _run)


def _run() -> int:
    cli.exit_on_signals()
    out = Output()
    began = time.monotonic()
    try:
        with _scratch_directory(out) as scratch, Processes() as processes:
            Scenes(out, scratch, processes).run()
    except (DemoFailed, subprocess.TimeoutExpired) as error:
        out.failure(str(error))
        return cli.EXIT_FAILURE
    out.success(f"All steps succeeded in {time.monotonic() - began:.1f} seconds. Nothing is left behind.")
    return 0


@contextlib.contextmanager
def _scratch_directory(out: Output) -> Iterator[Path]:
    """Make a directory under ./build, and remove it at the end.

    If there is no ./build, or if its path is too long for a socket, use the system's temporary directory instead.
    """
    build = Path("build").absolute()
    parent = build / "demo"
    try:
        check_socket_directory(str(parent / "12345678" / "lock" / "msg.sock"))
        if not build.is_dir():
            raise ConfigError(f"there is no {build}")
        parent.mkdir(exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=parent, prefix=""))
    except (ConfigError, OSError) as error:
        scratch = Path(tempfile.mkdtemp(prefix="msgd"))
        out.detail(f"The scratch directory is {scratch}, because {error}")
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)
        if scratch.parent == parent:
            with contextlib.suppress(OSError):  # it is not empty: another demo is running
                parent.rmdir()
