# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: The msgd authors
"""Servers that are started for one run: wait until one is ready, and kill it at the end."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator, Sequence

from msgd.bench.peers.base import START_TIMEOUT
from msgd.bench.workers import RunFailed


@contextlib.contextmanager
def running(command: Sequence[str], ready: re.Pattern[bytes]) -> Iterator[tuple[int, re.Match[bytes]]]:
    """Run a server, and return its pid and the match once its output matches `ready`.  It is killed at the end.

    Raises RunFailed if the output does not match within START_TIMEOUT, or the server ends before.
    """
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as server:
        try:
            assert server.stdout is not None
            yield server.pid, _await(command[0], server.stdout.fileno(), ready)
        finally:
            server.kill()


def _await(program: str, output: int, ready: re.Pattern[bytes]) -> re.Match[bytes]:
    poll = select.poll()
    poll.register(output, select.POLLIN)
    deadline = time.monotonic() + START_TIMEOUT
    so_far = b""
    while (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000) and (more := os.read(output, 4096)):
        so_far += more
        if found := ready.search(so_far):
            return found
    raise RunFailed(f"{os.path.basename(program)} did not start: {so_far.decode(errors='replace').strip()}")
