# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""The demo (`make demo`): a real msgd and real processes message each other before the user's eyes.

It works in a scratch directory and leaves neither a process nor a file behind, however it ends.  It never sleeps: each
step waits for the event that it needs, with a time limit that only a hanging process reaches.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from msgd.errors import ConfigError
from msgd.presence.socket_path import check_socket_directory
from msgd.programs import cli
from msgd.tools.demo.output import Output
from msgd.tools.demo.processes import DemoFailed, Processes
from msgd.tools.demo.scenes import Scenes

PROGRAM = "demo"


def main() -> int:
    """Run the demo; the exit status tells whether all went well."""
    return cli.run(PROGRAM, _run)


def _run() -> int:
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    out = Output()
    began = time.monotonic()
    try:
        with _scratch_directory(out) as scratch, Processes() as processes:
            Scenes(out, scratch, processes).run()
    except (DemoFailed, subprocess.TimeoutExpired) as error:
        out.failure(str(error))
        return cli.EXIT_FAILURE
    out.success(f"All well, in {time.monotonic() - began:.1f} seconds; nothing is left behind.")
    return 0


def _end(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


@contextlib.contextmanager
def _scratch_directory(out: Output) -> Iterator[Path]:
    """A directory of our own under ./build, or in the system's place where that has too long a path; then removed."""
    build = Path("build").absolute()
    above = build / "demo"
    try:
        check_socket_directory(str(above / "12345678" / "lock" / "msg.sock"))
        if not build.is_dir():
            raise ConfigError(f"there is no {build}")
        above.mkdir(exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=above, prefix=""))
    except (ConfigError, OSError) as error:
        scratch = Path(tempfile.mkdtemp(prefix="msgd"))
        out.detail(f"The scratch directory is {scratch}, since {error}")
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)
        if scratch.parent == above:
            with contextlib.suppress(OSError):  # another demo is running
                above.rmdir()
